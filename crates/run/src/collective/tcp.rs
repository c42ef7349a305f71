//! A ring of TCP connections.
//!
//! Rank 0 listens on an address that all hosts reach. The others connect there and say which rank
//! they are and where they listen themselves; once all are there, rank 0 tells each the address of
//! the next rank, and each connects to it. Connections from elsewhere (a port scan, a rank of
//! another job) are closed. There is neither authentication nor encryption: use it in a trusted
//! network, as with MPI or `torchrun`.
//!
//! All numbers are little-endian. A rank begins every connection with a greeting of 32 bytes:
//!
//! | bytes | content |
//! |---|---|
//! | 0–7 | `clasp/1` and a zero |
//! | 8–15 | number of the job: 0 to rank 0 at first, else what rank 0 answered |
//! | 16–19 | world size |
//! | 20–23 | rank |
//! | 24–25 | port on which it listens |
//! | 26–31 | zeros |
//!
//! Rank 0 answers the first greeting with the number of the job (8 bytes), the length of the address
//! of the next rank (1 byte; 0 for rank 0 itself) and that address as text; with the job 0 and the
//! number of ranks (1 byte: 0) it refuses a rank.

use std::fmt::Debug;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use super::ring::{self, Neighbors};
use super::{Collective, CollectiveError, ExchangeFormat, Rank};

/// The first bytes of every connection.
const MAGIC: &[u8; 8] = b"clasp/1\0";
/// Pause between two attempts to connect, and between two looks for connections.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a new connection may take to say what it is.
const GREETING_TIME: Duration = Duration::from_secs(10);
/// Bytes that fit into the buffers of an idle connection: they are sent without a thread of their
/// own, as writing them does not wait for the reader.
const FITS_BUFFER: usize = 8 << 10;

/// How the ranks find each other.
pub struct TcpOptions<'a> {
    /// This process.
    pub rank: Rank,
    /// Host and port on which rank 0 listens, and to which the others connect.
    pub master: &'a str,
    /// How long a rank waits for the others: to appear, and at every exchange.
    pub patience: Duration,
    /// Whether to wait on for ranks that are not there yet; false after Ctrl-C.
    pub waits: &'a dyn Fn() -> bool,
}

/// A rank in a ring of TCP connections.
#[derive(Debug)]
pub struct TcpRing {
    rank: Rank,
    /// From the rank before.
    previous: TcpStream,
    /// To the next rank.
    next: TcpStream,
}

impl TcpRing {
    /// Connects the ranks; returns once all are there.
    ///
    /// # Errors
    /// Rank 0 cannot listen, or the others do not appear in time.
    pub fn connect(options: &TcpOptions<'_>) -> Result<Self, CollectiveError> {
        Connecting {
            options,
            until: Instant::now() + options.patience,
        }
        .ring()
    }
}

/// A rank that looks for the others.
struct Connecting<'a> {
    options: &'a TcpOptions<'a>,
    until: Instant,
}

/// What a rank says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Greeting {
    job: u64,
    rank: Rank,
    port: u16,
}

impl Greeting {
    fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..16].copy_from_slice(&self.job.to_le_bytes());
        bytes[16..20].copy_from_slice(&(self.rank.size as u32).to_le_bytes());
        bytes[20..24].copy_from_slice(&(self.rank.index as u32).to_le_bytes());
        bytes[24..26].copy_from_slice(&self.port.to_le_bytes());
        bytes
    }

    /// None of a connection that is not one of ours.
    fn of_bytes(bytes: &[u8; 32]) -> Option<Self> {
        let number = |from: usize, length: usize| {
            let bytes = bytes[from..from + length].iter().rev();
            bytes.fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let [size, index] = [16, 20].map(|from| number(from, 4) as usize);
        let rank = Rank::new(index, size).ok()?;
        (bytes.starts_with(MAGIC) && bytes[26..] == [0; 6]).then_some(Self {
            job: number(8, 8),
            rank,
            port: number(24, 2) as u16,
        })
    }
}

impl Connecting<'_> {
    fn ring(&self) -> Result<TcpRing, CollectiveError> {
        let rank = self.options.rank;
        let (listener, job, next) = match rank.index {
            0 => self.gather_ranks()?,
            _ => self.join()?,
        };
        let next = self.connect_to(&[next])?;
        let greeting = Greeting { job, rank, port: 0 };
        { &next }
            .write_all(&greeting.to_bytes())
            .map_err(|error| self.failed(error))?;
        let expected = Greeting {
            rank: Rank {
                index: ring::previous(rank),
                ..rank
            },
            ..greeting
        };
        let previous = loop {
            let (stream, _, greeting) = self.accept(&listener)?;
            if greeting == expected {
                break stream;
            }
        };
        for stream in [&previous, &next] {
            { stream.set_read_timeout(Some(self.options.patience)) }
                .and_then(|()| stream.set_write_timeout(Some(self.options.patience)))
                .and_then(|()| stream.set_nodelay(true))
                .map_err(|error| self.failed(error))?;
        }
        Ok(TcpRing {
            rank,
            previous,
            next,
        })
    }

    /// Rank 0: waits for all others and tells each its next rank. Returns the number of the job and
    /// the address of rank 1.
    fn gather_ranks(&self) -> Result<(TcpListener, u64, SocketAddr), CollectiveError> {
        let addresses = self.master_addresses()?;
        let listener = self.listen(&addresses[..])?;
        let size = self.options.rank.size;
        let own = { listener.local_addr() }.map_err(|error| self.failed(error))?;
        let mut joined: Vec<Option<(TcpStream, SocketAddr)>> = (0..size).map(|_| None).collect();
        while joined[1..].iter().any(Option::is_none) {
            let (mut stream, peer, greeting) = self.accept(&listener)?;
            let place = joined.get_mut(greeting.rank.index);
            match place {
                Some(place @ None)
                    if greeting.rank.size == size
                        && greeting.rank.index > 0
                        && greeting.job == 0 =>
                {
                    *place = Some((stream, SocketAddr::new(peer.ip(), greeting.port)));
                }
                // Refused; a rank that is gone cannot receive that.
                _ => drop(stream.write_all(&[0; 9])),
            }
        }
        // Random, and never 0.
        let job = RandomState::new().hash_one(process::id()) | 1;
        let addresses: Vec<Option<SocketAddr>> = { joined.iter() }
            .map(|joined| joined.as_ref().map(|(_, address)| *address))
            .collect();
        for (index, joined) in joined.iter_mut().enumerate() {
            let Some((stream, _)) = joined else {
                continue;
            };
            let next = addresses[(index + 1) % size].map(|address| address.to_string());
            let next = next.unwrap_or_default();
            let mut answer = job.to_le_bytes().to_vec();
            answer.push(next.len() as u8);
            answer.extend_from_slice(next.as_bytes());
            { stream.write_all(&answer) }.map_err(|error| self.failed(error))?;
        }
        let next = addresses.get(1).copied().flatten().unwrap_or(own);
        Ok((listener, job, next))
    }

    /// Another rank: tells rank 0 where it listens. Returns the number of the job and the address of
    /// the next rank.
    fn join(&self) -> Result<(TcpListener, u64, SocketAddr), CollectiveError> {
        let mut stream = self.connect_to(&self.master_addresses()?)?;
        let failed = |error: io::Error| self.failed(error);
        let master = stream.peer_addr().map_err(failed)?;
        // On the interface that reaches rank 0.
        let own = stream.local_addr().map_err(failed)?.ip();
        let listener = self.listen(&[SocketAddr::new(own, 0)])?;
        let greeting = Greeting {
            job: 0,
            rank: self.options.rank,
            port: listener.local_addr().map_err(failed)?.port(),
        };
        stream.write_all(&greeting.to_bytes()).map_err(failed)?;
        let mut head = [0; 9];
        self.read_patiently(&mut stream, &mut head)?;
        let [job @ .., length] = head;
        let job = u64::from_le_bytes(job);
        if job == 0 {
            let reason = "rank 0 expects another number of ranks, or has a rank of this number";
            return Err(self.not_connected(&master, reason));
        }
        let mut text = vec![0; usize::from(length)];
        self.read_patiently(&mut stream, &mut text)?;
        let next = match length {
            0 => master,
            _ => { String::from_utf8(text).ok() }
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| self.not_connected(&master, "rank 0 named no address"))?,
        };
        Ok((listener, job, next))
    }

    fn master_addresses(&self) -> Result<Vec<SocketAddr>, CollectiveError> {
        let master = self.options.master;
        let found = master.to_socket_addrs().map(Iterator::collect);
        match found {
            Ok(addresses) if !Vec::is_empty(&addresses) => Ok(addresses),
            Ok(_) => Err(self.not_connected(&master, "the host has no address")),
            Err(error) => Err(self.not_connected(&master, error)),
        }
    }

    fn listen(&self, addresses: &[SocketAddr]) -> Result<TcpListener, CollectiveError> {
        let address = addresses
            .first()
            .map(ToString::to_string)
            .unwrap_or_default();
        { TcpListener::bind(addresses) }
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|error| self.not_connected(&address, format!("cannot listen: {error}")))
    }

    /// The next connection that is from a rank, with the address that it comes from.
    fn accept(
        &self,
        listener: &TcpListener,
    ) -> Result<(TcpStream, SocketAddr, Greeting), CollectiveError> {
        loop {
            match listener.accept() {
                Ok((stream, peer)) => {
                    if let Some(greeting) = greeting_of(&stream) {
                        return Ok((stream, peer, greeting));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.pause("not all ranks appeared in time")?;
                }
                // A connection that was closed before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
    }

    /// A connection to the first of the addresses that answers.
    fn connect_to(&self, addresses: &[SocketAddr]) -> Result<TcpStream, CollectiveError> {
        loop {
            let mut reason = String::new();
            for address in addresses {
                match TcpStream::connect_timeout(address, GREETING_TIME) {
                    Ok(stream) => return Ok(stream),
                    Err(error) => reason = format!("no connection with {address}: {error}"),
                }
            }
            self.pause(&reason)?;
        }
    }

    /// Fills `bytes`; stops where the user stops the program or the time is over.
    fn read_patiently(
        &self,
        stream: &mut TcpStream,
        bytes: &mut [u8],
    ) -> Result<(), CollectiveError> {
        { stream.set_read_timeout(Some(10 * PAUSE)) }.map_err(|error| self.failed(error))?;
        let mut filled = 0;
        while filled < bytes.len() {
            match stream.read(&mut bytes[filled..]) {
                Ok(0) => {
                    let reason = "rank 0 closed the connection";
                    return Err(self.not_connected(&self.options.master, reason));
                }
                Ok(count) => filled += count,
                Err(error) if is_timeout(&error) => self.pause("not all ranks appeared in time")?,
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(())
    }

    /// Waits a moment.
    fn pause(&self, reason: &str) -> Result<(), CollectiveError> {
        if !(self.options.waits)() {
            return Err(CollectiveError::Stopped);
        }
        if Instant::now() >= self.until {
            return Err(self.not_connected(&self.options.master, reason));
        }
        thread::sleep(PAUSE);
        Ok(())
    }

    fn failed(&self, error: io::Error) -> CollectiveError {
        self.not_connected(&self.options.master, error)
    }

    fn not_connected(&self, address: &impl ToString, reason: impl ToString) -> CollectiveError {
        CollectiveError::NotConnected {
            rank: self.options.rank.index,
            address: address.to_string(),
            reason: reason.to_string(),
        }
    }
}

/// The greeting with which a connection begins; none of a connection that is not from a rank.
fn greeting_of(stream: &TcpStream) -> Option<Greeting> {
    let mut bytes = [0; 32];
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(GREETING_TIME)).ok()?;
    let mut reader = stream;
    reader.read_exact(&mut bytes).ok()?;
    Greeting::of_bytes(&bytes)
}

fn is_timeout(error: &io::Error) -> bool {
    // Systems differ in which of these a timeout is.
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

impl Neighbors for TcpRing {
    fn exchange(&self, send: &[u8], receive: &mut [u8]) -> Result<(), CollectiveError> {
        let (mut next, mut previous) = (&self.next, &self.previous);
        let [sent, received] = if send.len() <= FITS_BUFFER {
            let sent = next.write_all(send);
            [sent, previous.read_exact(receive)]
        } else {
            // All ranks send at the same time: none would read if all waited for a reader.
            thread::scope(|scope| {
                let sender = scope.spawn(move || next.write_all(send));
                let received = previous.read_exact(receive);
                if received.is_err() {
                    // Nothing will read what is sent, but the sender need not wait to learn it.
                    let _ = self.next.shutdown(Shutdown::Both);
                }
                let sent = sender.join();
                [
                    sent.unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                    received,
                ]
            })
        };
        received.map_err(|error| self.lost(ring::previous(self.rank), &error))?;
        sent.map_err(|error| self.lost(ring::next(self.rank), &error))
    }
}

impl TcpRing {
    fn lost(&self, peer: usize, error: &io::Error) -> CollectiveError {
        let reason = match error.kind() {
            io::ErrorKind::UnexpectedEof => "its connection is closed".to_owned(),
            _ if is_timeout(error) => "it did not answer in time".to_owned(),
            _ => error.to_string(),
        };
        CollectiveError::Lost {
            rank: self.rank.index,
            peer,
            reason,
        }
    }
}

impl Collective for TcpRing {
    fn rank(&self) -> Rank {
        self.rank
    }

    fn all_reduce(
        &self,
        values: &mut [f32],
        format: ExchangeFormat,
    ) -> Result<(), CollectiveError> {
        ring::all_reduce(self, values, format)
    }

    fn all_gather(&self, message: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        ring::all_gather(self, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greetings_are_read_as_written_and_others_refused() {
        let greeting = Greeting {
            job: 0x1234_5678_9abc_def1,
            rank: Rank { index: 3, size: 9 },
            port: 40_000,
        };
        let bytes = greeting.to_bytes();
        assert_eq!(Greeting::of_bytes(&bytes), Some(greeting));
        for (at, value) in [(0, b'x'), (17, 0xff), (20, 9), (31, 1)] {
            let mut changed = bytes;
            changed[at] = value;
            assert_eq!(Greeting::of_bytes(&changed), None, "byte {at}");
        }
    }
}
