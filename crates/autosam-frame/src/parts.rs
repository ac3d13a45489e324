//! Connected components of images.

/// Which pixels count as neighbours of a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Neighbours {
    /// Those to the left, right, above and below.
    Four,
    /// Those at its corners as well.
    Eight,
}

/// The connected components of the pixels of a `width × height` image that are `inside`, as indices `y · width + x`.
/// `starts` lists the pixels to start from and thereby the order; a component without a start is left out. Neighbours
/// are connected if they are `alike`.
pub fn connected(
    (width, height): (usize, usize),
    neighbours: Neighbours,
    starts: impl Iterator<Item = usize>,
    inside: impl Fn(usize) -> bool,
    alike: impl Fn(usize, usize) -> bool,
) -> Vec<Vec<usize>> {
    let (mut seen, mut found, mut stack) = (vec![false; width * height], Vec::new(), Vec::new());
    for start in starts {
        if seen[start] || !inside(start) {
            continue;
        }
        let mut part = Vec::new();
        seen[start] = true;
        stack.push(start);
        while let Some(at) = stack.pop() {
            part.push(at);
            let (x, y) = (at % width, at / width);
            for ny in y.saturating_sub(1)..(y + 2).min(height) {
                for nx in x.saturating_sub(1)..(x + 2).min(width) {
                    let next = ny * width + nx;
                    let joined = neighbours == Neighbours::Eight || nx == x || ny == y;
                    if joined && !seen[next] && inside(next) && alike(at, next) {
                        seen[next] = true;
                        stack.push(next);
                    }
                }
            }
        }
        found.push(part);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similar_neighbours_are_connected() {
        // 3 x 3: two pixels that touch at a corner, and one of another value next to the second.
        let pixels = [5, 0, 0, 0, 5, 9, 0, 0, 0];
        let parts = |neighbours, starts: &[usize], alike: bool| {
            let joins = |a: usize, b: usize| !alike || pixels[a] == pixels[b];
            let mut found = connected((3, 3), neighbours, starts.iter().copied(), |i| pixels[i] > 0, joins);
            found.iter_mut().for_each(|part| part.sort_unstable());
            found
        };
        let all = [0, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(parts(Neighbours::Four, &all, false), [vec![0], vec![4, 5]]);
        assert_eq!(parts(Neighbours::Eight, &all, false), [vec![0, 4, 5]]);
        assert_eq!(parts(Neighbours::Eight, &all, true), [vec![0, 4], vec![5]]);
        assert_eq!(parts(Neighbours::Four, &[1, 5], false), [vec![4, 5]], "from where one starts");
    }
}
