//! Where the bytes of a pickle come from.

use std::borrow::Cow;
use std::io::Read;

use super::node::Result;

/// The longest pickle in a stream: the description of a checkpoint has a few megabytes, as its
/// numbers lie elsewhere. One in memory is as long as the caller allowed.
const LONGEST: u64 = 64 << 20;
/// The longest name of a class or a function.
const LONGEST_LINE: u64 = 1 << 12;

/// Bytes one after another. A length that is claimed allocates nothing.
pub trait Input<'a> {
    /// Bytes that were taken so far.
    fn place(&self) -> u64;

    /// The next bytes.
    ///
    /// # Errors
    /// There are fewer, or the pickle is longer than allowed.
    fn take(&mut self, count: u64) -> Result<Cow<'a, [u8]>>;

    /// Passes over bytes.
    ///
    /// # Errors
    /// As [`Input::take`].
    fn skip(&mut self, count: u64) -> Result<()>;

    /// The next `N` bytes.
    ///
    /// # Errors
    /// As [`Input::take`].
    fn array<const N: usize>(&mut self) -> Result<[u8; N]>;

    /// A little-endian length of so many bytes.
    ///
    /// # Errors
    /// As [`Input::take`].
    fn length(&mut self, bytes: u32) -> Result<u64> {
        Ok(match bytes {
            1 => self.array::<1>()?[0].into(),
            4 => u32::from_le_bytes(self.array()?).into(),
            _ => u64::from_le_bytes(self.array()?),
        })
    }

    /// What stands before the next line break.
    ///
    /// # Errors
    /// There is none, or it is far away, or the line is not UTF-8.
    fn line(&mut self) -> Result<String> {
        let mut bytes = Vec::new();
        loop {
            match self.array::<1>()? {
                [b'\n'] => break,
                [byte] if (bytes.len() as u64) < LONGEST_LINE => bytes.push(byte),
                _ => return Err(format!("a line of more than {LONGEST_LINE} bytes")),
            }
        }
        String::from_utf8(bytes).map_err(|_| "a line that is not UTF-8".to_owned())
    }
}

fn breaks_off() -> String {
    "the pickle breaks off".to_owned()
}

/// A pickle in memory: blocks of bytes stay there and are not copied.
#[derive(Debug)]
pub struct BytesInput<'a> {
    bytes: &'a [u8],
    place: usize,
}

impl<'a> BytesInput<'a> {
    /// At the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, place: 0 }
    }

    fn next(&mut self, count: u64) -> Result<&'a [u8]> {
        let rest = self.bytes.get(self.place..).unwrap_or(&[]);
        let taken = { usize::try_from(count).ok() }
            .and_then(|count| rest.get(..count))
            .ok_or_else(breaks_off)?;
        self.place += taken.len();
        Ok(taken)
    }
}

impl<'a> Input<'a> for BytesInput<'a> {
    fn place(&self) -> u64 {
        self.place as u64
    }

    fn take(&mut self, count: u64) -> Result<Cow<'a, [u8]>> {
        self.next(count).map(Cow::Borrowed)
    }

    fn skip(&mut self, count: u64) -> Result<()> {
        self.next(count).map(drop)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.next(N as u64)?;
        <[u8; N]>::try_from(bytes).map_err(|_| breaks_off())
    }
}

/// A pickle in a stream, which is left behind the pickle's end.
#[derive(Debug)]
pub struct StreamInput<'r, R> {
    stream: &'r mut R,
    place: u64,
}

impl<'r, R: Read> StreamInput<'r, R> {
    /// At the first byte.
    pub fn new(stream: &'r mut R) -> Self {
        Self { stream, place: 0 }
    }

    fn advance(&mut self, count: u64) -> Result<()> {
        self.place = self.place.saturating_add(count);
        if self.place > LONGEST {
            return Err(format!("a pickle of more than {LONGEST} bytes"));
        }
        Ok(())
    }
}

impl<R: Read> Input<'static> for StreamInput<'_, R> {
    fn place(&self) -> u64 {
        self.place
    }

    fn take(&mut self, count: u64) -> Result<Cow<'static, [u8]>> {
        self.advance(count)?;
        let mut bytes = Vec::new();
        let found = { self.stream.by_ref().take(count) }
            .read_to_end(&mut bytes)
            .map_err(|error| error.to_string())?;
        if found as u64 != count {
            return Err(breaks_off());
        }
        Ok(Cow::Owned(bytes))
    }

    fn skip(&mut self, count: u64) -> Result<()> {
        self.advance(count)?;
        let mut part = self.stream.by_ref().take(count);
        let found = std::io::copy(&mut part, &mut std::io::sink());
        if found.map_err(|error| error.to_string())? != count {
            return Err(breaks_off());
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.advance(N as u64)?;
        let mut bytes = [0; N];
        self.stream
            .read_exact(&mut bytes)
            .map_err(|error| format!("{} ({error})", breaks_off()))?;
        Ok(bytes)
    }
}
