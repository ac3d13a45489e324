//! Distributed training, as in PyTorch's DistributedDataParallel. Each process takes its own batches from a common
//! order, and gradients are averaged before every step, so that all processes have the same weights.
//!
//! The processes find each other through torchrun's environment variables. Process 0 listens, the others connect to it
//! and send f32 values, which it adds up. Tensors on a GPU are copied to the CPU.

use crate::{Error, Result};
use candle_core::{Device, Tensor};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// Maximum time for all processes of a run to start.
const GATHERING: Duration = Duration::from_secs(300);
/// Maximum silence of a process. It is long because process 0 validates while the others wait.
const SILENCE: Duration = Duration::from_secs(3600);
/// Maximum time to wait for an unknown client's greeting.
const GREETING: Duration = Duration::from_secs(10);
const MAGIC: &[u8; 8] = b"autosam1";
/// Length of a hexadecimal SHA-256.
const FINGERPRINT: usize = 64;

/// Place of this process in a distributed run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Rank from 0; process 0 writes the run folder.
    pub rank: usize,
    /// Number of processes, 2 or more.
    pub size: usize,
    /// Rank within the same machine, which selects the GPU.
    pub local_rank: usize,
    /// Address at which process 0 listens.
    pub address: (String, u16),
}

impl Place {
    /// Reads `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR` and `MASTER_PORT` (29500 if not set), as set by
    /// torchrun; the first three from `SLURM_PROCID`, `SLURM_NTASKS` and `SLURM_LOCALID` if `srun` starts the processes
    /// without torchrun. `None` for a run of one process, that is, without `MASTER_ADDR` or with a size of one.
    ///
    /// # Errors
    /// If a variable is missing or not a number; the message names it.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let Some(host) = variable("MASTER_ADDR").filter(|h| !h.is_empty()) else {
            return match variable("WORLD_SIZE").as_deref() {
                None | Some("" | "1") => Ok(None),
                Some(size) => Err(Error::invalid(format!(
                    "WORLD_SIZE is {size}, but MASTER_ADDR, the machine of process 0, is not set"
                ))),
            };
        };
        let number = |names: [&str; 2]| {
            let found = names.iter().find_map(|n| variable(n).map(|v| (*n, v)));
            let Some((name, value)) = found else {
                return Err(Error::invalid(format!("MASTER_ADDR is set, but {} is not", names[0])));
            };
            value
                .parse::<usize>()
                .map_err(|_| Error::invalid(format!("{name} is {value:?}; expected a number")))
        };
        let size = number(["WORLD_SIZE", "SLURM_NTASKS"])?;
        if size < 2 {
            return Ok(None);
        }
        let rank = number(["RANK", "SLURM_PROCID"])?;
        if rank >= size {
            return Err(Error::invalid(format!(
                "RANK is {rank}; it must be below WORLD_SIZE, which is {size}"
            )));
        }
        let port = variable("MASTER_PORT").unwrap_or_else(|| "29500".to_owned());
        let port = port
            .parse()
            .map_err(|_| Error::invalid(format!("MASTER_PORT is {port:?}; expected a port, 1 to 65535")))?;
        Ok(Some(Self {
            rank,
            size,
            local_rank: number(["LOCAL_RANK", "SLURM_LOCALID"])?,
            address: (host, port),
        }))
    }
}

/// The processes of a run, connected.
#[derive(Debug)]
pub struct Group {
    rank: usize,
    size: usize,
    /// In process 0 all others by rank, from 1; in the others only process 0.
    links: Vec<(usize, TcpStream)>,
}

impl Group {
    /// Waits until all processes of the run are connected, each computing on its `device`. `fingerprint` is the
    /// hexadecimal SHA-256 of everything that must be equal in all of them: configuration, initial weights, step.
    ///
    /// # Errors
    /// If a process does not connect within five minutes, or has another fingerprint or a rank that is already taken.
    pub fn gather(place: &Place, fingerprint: &str, device: &Device) -> Result<Self> {
        let deadline = Instant::now() + GATHERING;
        let links = match place.rank {
            0 => host(place, fingerprint, deadline)?,
            _ => vec![(0, join(place, fingerprint, deadline)?)],
        };
        for (_, link) in &links {
            let set = link.set_read_timeout(Some(SILENCE)).and_then(|()| link.set_nodelay(true));
            set.map_err(|e| Error::Peer(format!("cannot connect the processes: {e}")))?;
        }
        let group = Self { rank: place.rank, size: place.size, links };
        tracing::info!(rank = group.rank, size = group.size, device = ?device.location(), "the run's processes are connected");
        Ok(group)
    }

    /// The process's rank, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of processes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Means of `values` over all processes, bit-identical in each.
    ///
    /// # Errors
    /// [`Error::Peer`] if a process has ended.
    pub fn mean(&self, values: &mut [f32]) -> Result<()> {
        self.sum(values)?;
        values.iter_mut().for_each(|v| *v /= self.size as f32);
        Ok(())
    }

    /// Logical OR over all processes.
    pub fn any(&self, here: bool) -> Result<bool> {
        let mut count = [f32::from(u8::from(here))];
        self.sum(&mut count)?;
        Ok(count[0] > 0.0)
    }

    /// Sums each tensor over the processes that have it and divides by the number of all processes, which equals the
    /// mean over all images. A tensor that no process has stays `None`. Shapes are those of `like`.
    pub fn mean_of_tensors(
        &self,
        tensors: Vec<Option<Tensor>>,
        like: &[&Tensor],
    ) -> Result<Vec<Option<Tensor>>> {
        let mut present: Vec<f32> = tensors.iter().map(|t| f32::from(u8::from(t.is_some()))).collect();
        self.sum(&mut present)?;
        let mut flat = Vec::new();
        for ((tensor, like), present) in tensors.iter().zip(like).zip(&present) {
            if *present > 0.0 {
                flat.push(match tensor {
                    Some(tensor) => tensor.flatten_all()?,
                    None => like.zeros_like()?.flatten_all()?,
                });
            }
        }
        if flat.is_empty() {
            return Ok(tensors);
        }
        let sum = (self.sum_of_tensor(Tensor::cat(&flat, 0)?)? / self.size as f64)?;
        let mut at = 0;
        let mut take = |like: &Tensor| {
            let part = sum.narrow(0, at, like.elem_count())?.reshape(like.shape())?;
            at += like.elem_count();
            Ok(part)
        };
        like.iter().zip(&present).map(|(like, n)| (*n > 0.0).then(|| take(like)).transpose()).collect()
    }

    /// `[n]` f32, summed over all processes.
    fn sum_of_tensor(&self, tensor: Tensor) -> Result<Tensor> {
        let mut values = tensor.to_vec1::<f32>()?;
        self.sum(&mut values)?;
        Ok(Tensor::new(values, tensor.device())?)
    }

    /// Sums over all processes, in the order of ranks, so that runs are reproducible.
    fn sum(&self, values: &mut [f32]) -> Result<()> {
        if self.rank == 0 {
            let mut theirs = vec![0.0; values.len()];
            for (rank, link) in &self.links {
                receive(link, &mut theirs).map_err(|e| gone(*rank, &e))?;
                values.iter_mut().zip(&theirs).for_each(|(v, t)| *v += t);
            }
            return self
                .links
                .iter()
                .try_for_each(|(rank, link)| send(link, values).map_err(|e| gone(*rank, &e)));
        }
        for (rank, link) in &self.links {
            send(link, values).and_then(|()| receive(link, values)).map_err(|e| gone(*rank, &e))?;
        }
        Ok(())
    }
}

fn gone(rank: usize, cause: &std::io::Error) -> Error {
    Error::Peer(format!(
        "process {rank} of the run is gone ({cause}); its own output says why. Start all again with --resume"
    ))
}

/// Sends the number of values, then the values, little-endian.
fn send(mut link: &TcpStream, values: &[f32]) -> std::io::Result<()> {
    let mut bytes = Vec::with_capacity(8 + 4 * values.len());
    bytes.extend((values.len() as u64).to_le_bytes());
    bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    link.write_all(&bytes)
}

/// Receives exactly as many values as `values` holds.
fn receive(mut link: &TcpStream, values: &mut [f32]) -> std::io::Result<()> {
    let mut count = [0; 8];
    link.read_exact(&mut count)?;
    if u64::from_le_bytes(count) != values.len() as u64 {
        return Err(std::io::Error::new(ErrorKind::InvalidData, "it is at a different point of the run"));
    }
    let mut bytes = vec![0; 4 * values.len()];
    link.read_exact(&mut bytes)?;
    for (value, b) in values.iter_mut().zip(bytes.chunks_exact(4)) {
        *value = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    }
    Ok(())
}

/// Accepts the other processes and rejects unknown clients.
fn host(place: &Place, fingerprint: &str, deadline: Instant) -> Result<Vec<(usize, TcpStream)>> {
    let (name, port) = &place.address;
    let failed =
        |e| Error::Peer(format!("process 0 cannot listen at {name}:{port} (MASTER_ADDR, MASTER_PORT): {e}"));
    let listener = TcpListener::bind((name.as_str(), *port)).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let mut links: Vec<(usize, TcpStream)> = Vec::new();
    while links.len() + 1 < place.size {
        match listener.accept() {
            Ok((mut link, from)) => match greeted(&mut link) {
                Ok((rank, size, theirs)) => {
                    let taken = rank == 0 || rank >= place.size || links.iter().any(|(r, _)| *r == rank);
                    if taken || size != place.size || theirs != fingerprint.as_bytes() {
                        // The other process reports the mismatch as well.
                        let _ = link.write_all(&[0]);
                        return Err(Error::Peer(format!(
                            "process {rank} of {size} at {from} belongs to another run, or its rank is taken: start all {} with the same command, configuration, weights and checkpoint",
                            place.size
                        )));
                    }
                    if link.write_all(&[1]).is_ok() {
                        links.push((rank, link));
                    }
                }
                Err(e) => tracing::warn!("a connection from {from} is not from a process of this run: {e}"),
            },
            Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                let missing: Vec<String> = (1..place.size)
                    .filter(|rank| links.iter().all(|(r, _)| r != rank))
                    .map(|rank| rank.to_string())
                    .collect();
                return Err(Error::Peer(format!(
                    "processes {} of {} did not connect within {} s",
                    missing.join(", "),
                    place.size,
                    GATHERING.as_secs()
                )));
            }
            Err(e) => return Err(failed(e)),
        }
    }
    links.sort_by_key(|(rank, _)| *rank);
    Ok(links)
}

/// Reads the rank, number of processes and fingerprint of a client.
fn greeted(link: &mut TcpStream) -> std::io::Result<(usize, usize, Vec<u8>)> {
    link.set_nonblocking(false)?;
    link.set_read_timeout(Some(GREETING))?;
    let mut hello = [0; MAGIC.len() + 8 + FINGERPRINT];
    link.read_exact(&mut hello)?;
    let (magic, rest) = hello.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(std::io::Error::new(ErrorKind::InvalidData, "its answer differs"));
    }
    let number =
        |at: usize| u32::from_le_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]) as usize;
    Ok((number(0), number(4), rest[8..].to_vec()))
}

/// Connects to process 0, which may start later.
fn join(place: &Place, fingerprint: &str, deadline: Instant) -> Result<TcpStream> {
    let (name, port) = &place.address;
    let mut hello = MAGIC.to_vec();
    hello.extend((place.rank as u32).to_le_bytes());
    hello.extend((place.size as u32).to_le_bytes());
    hello.extend(fingerprint.bytes());
    loop {
        let connected = (name.as_str(), *port).to_socket_addrs().and_then(|mut all| {
            let address = all.next().ok_or_else(|| std::io::Error::other("the name has no address"))?;
            TcpStream::connect_timeout(&address, GREETING)
        });
        match connected {
            Ok(mut link) => {
                let mut answer = [0];
                // Process 0 answers clients one after the other.
                let asked = link
                    .set_read_timeout(Some(GATHERING))
                    .and_then(|()| link.write_all(&hello))
                    .and_then(|()| link.read_exact(&mut answer));
                return match (asked, answer) {
                    (Ok(()), [1]) => Ok(link),
                    (Ok(()), _) => Err(Error::Peer(format!(
                        "process 0 at {name}:{port} belongs to another run, or rank {} is taken: start all {} with the same command, configuration, weights and checkpoint",
                        place.rank, place.size
                    ))),
                    (Err(e), _) => Err(gone(0, &e)),
                };
            }
            Err(e) if Instant::now() >= deadline => {
                return Err(Error::Peer(format!(
                    "process 0 cannot be reached at {name}:{port} (MASTER_ADDR, MASTER_PORT) within {} s: {e}",
                    GATHERING.as_secs()
                )));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(set: &[(&str, &str)]) -> Result<Option<Place>> {
        Place::from_variables(|name| set.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn a_place_is_read_from_torchrun_s_or_slurm_s_variables() {
        let place = Place { rank: 3, size: 8, local_rank: 1, address: ("node0".into(), 29501) };
        let torchrun = [
            ("RANK", "3"),
            ("WORLD_SIZE", "8"),
            ("LOCAL_RANK", "1"),
            ("MASTER_ADDR", "node0"),
            ("MASTER_PORT", "29501"),
        ];
        assert_eq!(variables(&torchrun).unwrap(), Some(place.clone()));
        let slurm = [
            ("MASTER_ADDR", "node0"),
            ("MASTER_PORT", "29501"),
            ("SLURM_PROCID", "3"),
            ("SLURM_NTASKS", "8"),
            ("SLURM_LOCALID", "1"),
        ];
        assert_eq!(variables(&slurm).unwrap(), Some(place));
        // A batch script's own variables do not start a distributed run.
        assert_eq!(variables(&slurm[2..]).unwrap(), None);
        assert_eq!(variables(&[("MASTER_ADDR", "a"), ("WORLD_SIZE", "1")]).unwrap(), None);
        let text = |set: &[(&str, &str)]| variables(set).unwrap_err().to_string();
        assert!(text(&[("WORLD_SIZE", "2")]).contains("MASTER_ADDR"));
        assert!(text(&torchrun[1..]).contains("RANK is not"));
        assert!(text(&[("RANK", "x"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a")]).contains("RANK is \"x\""));
        assert!(
            text(&[("RANK", "2"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a")]).contains("below WORLD_SIZE")
        );
    }

    /// Runs `work` in one thread per process; returns the results by rank.
    fn processes<T: Send>(fingerprints: &[&str], work: impl Fn(Result<Group>) -> T + Sync) -> Vec<T> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let place = |rank| Place {
            rank,
            size: fingerprints.len(),
            local_rank: rank,
            address: ("127.0.0.1".into(), port),
        };
        std::thread::scope(|scope| {
            let work = &work;
            let start = |(rank, f): (usize, &&str)| {
                let (place, fingerprint) = (place(rank), f.repeat(FINGERPRINT));
                scope.spawn(move || work(Group::gather(&place, &fingerprint, &Device::Cpu)))
            };
            let threads: Vec<_> = fingerprints.iter().enumerate().map(start).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        })
    }

    #[test]
    fn means_are_equal_in_all_processes_and_missing_tensors_count_as_zero() {
        let answers = processes(&["a"; 3], |group| {
            let group = group.unwrap();
            let rank = group.rank() as f32;
            let mut values = [rank, 10.0 * rank];
            group.mean(&mut values).unwrap();
            assert_eq!(values, [1.0, 10.0]);
            assert!(group.any(group.rank() == 2).unwrap());
            assert!(!group.any(false).unwrap());

            let tensor = |v: f32| Tensor::full(v, (2, 1), &Device::Cpu).unwrap();
            let like = tensor(0.0);
            // One tensor that all have, one that none has, one that only process 1 has.
            let own = vec![Some(tensor(rank)), None, (group.rank() == 1).then(|| tensor(6.0))];
            let means = group.mean_of_tensors(own, &[&like, &like, &like]).unwrap();
            means.iter().map(|t| t.as_ref().map(|t| t.to_vec2::<f32>().unwrap())).collect::<Vec<_>>()
        });
        let want = vec![Some(vec![vec![1.0], vec![1.0]]), None, Some(vec![vec![2.0], vec![2.0]])];
        assert_eq!(answers, [want.clone(), want.clone(), want]);
    }

    #[test]
    fn a_process_of_another_run_is_refused_by_both_sides() {
        let errors = processes(&["a", "b"], |group| group.unwrap_err().to_string());
        assert!(errors[0].contains("process 1 of 2") && errors[0].contains("another run"), "{}", errors[0]);
        assert!(
            errors[1].contains("process 0 at 127.0.0.1") && errors[1].contains("same command"),
            "{}",
            errors[1]
        );
    }

    #[test]
    fn an_ended_process_is_named_and_unknown_clients_are_ignored() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let place = move |rank| Place { rank, size: 2, local_rank: 0, address: ("127.0.0.1".into(), port) };
        let gather = move |rank: usize| Group::gather(&place(rank), &"c".repeat(FINGERPRINT), &Device::Cpu);
        let first = std::thread::spawn(move || {
            let group = gather(0).unwrap();
            (group.mean(&mut [1.0]), group.mean(&mut [1.0]).unwrap_err().to_string())
        });
        let stranger = loop {
            if let Ok(mut stranger) = TcpStream::connect(("127.0.0.1", port)) {
                stranger.write_all(&[b'x'; 200]).unwrap();
                break stranger;
            }
        };
        let second = gather(1).unwrap();
        second.mean(&mut [3.0]).unwrap();
        drop((second, stranger));
        let (all_there, text) = first.join().unwrap();
        all_there.unwrap();
        assert!(text.contains("process 1 of the run is gone") && text.contains("--resume"), "{text}");
    }
}
