//! Decides when an inference is captured as a graph.

use std::fmt::Display;

/// Number of inferences before a capture. A capture takes as long as three inferences, so a few masks are computed
/// first. By then a GPU has loaded all kernels and their constants.
const INFERENCES: usize = 2;

/// A graph that is captured after a few inferences.
pub struct WarmUp<G> {
    /// Number of inferences so far.
    seen: usize,
    graph: Option<G>,
    /// A capture failed, and another would fail too.
    gave_up: bool,
}

impl<G> Default for WarmUp<G> {
    fn default() -> Self {
        Self { seen: 0, graph: None, gave_up: false }
    }
}

impl<G> WarmUp<G> {
    /// The captured graph, if any.
    pub fn graph(&self) -> Option<&G> {
        self.graph.as_ref()
    }

    /// Counts an inference. Returns the graph to replay, or `None` if this inference must run eagerly. Calls `capture`
    /// after enough inferences; `failed` is the warning if that fails.
    pub fn next<E: Display>(
        &mut self,
        capture: impl FnOnce() -> Result<G, E>,
        failed: &str,
    ) -> Option<&mut G> {
        if self.graph.is_none() && self.seen >= INFERENCES && !self.gave_up {
            match capture() {
                Ok(graph) => self.graph = Some(graph),
                Err(e) => {
                    tracing::warn!("{failed}: {e}");
                    self.gave_up = true;
                }
            }
        }
        self.seen += 1;
        self.graph.as_mut()
    }

    /// Drops the graph and restarts counting.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    pub fn restart(&mut self) {
        *self = Self { gave_up: self.gave_up, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_graph_is_captured_after_two_inferences_and_again_after_a_restart() {
        let mut warm_up = WarmUp::default();
        let next = |warm_up: &mut WarmUp<u32>| warm_up.next(|| Ok::<_, String>(7), "").copied();
        assert_eq!([(); 4].map(|()| next(&mut warm_up)), [None, None, Some(7), Some(7)]);
        warm_up.restart();
        assert_eq!([(); 3].map(|()| next(&mut warm_up)), [None, None, Some(7)]);
    }

    #[test]
    fn a_failed_capture_is_not_repeated() {
        let (mut warm_up, mut tries) = (WarmUp::<u32>::default(), 0);
        for _ in 0..5 {
            let mut fail = || {
                tries += 1;
                Err("no memory")
            };
            assert!(warm_up.next(&mut fail, "cannot capture").is_none());
        }
        warm_up.restart();
        (0..3).for_each(|_| assert!(warm_up.next(|| Ok::<_, String>(7), "").is_none()));
        assert_eq!(tries, 1);
    }
}
