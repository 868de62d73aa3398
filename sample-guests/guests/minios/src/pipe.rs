//! Pipes: a bounded queue of bytes between an end to read and an end to write.
//!
//! Ends are shared by those who have them as descriptors; when the last one lets go of an end, the other end learns of it:
//! a reader that all is over, a writer that nobody reads.
//!
//! Start at [`new`].

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use guest_sdk::sync::Lock;
use minios_abi::Error;

/// Bytes that a pipe holds.
const CAPACITY: usize = 16 << 10;

#[derive(Debug)]
struct Pipe {
    /// With room for all that there can be, from the start: writing needs no memory.
    bytes: VecDeque<u8>,
    reader_gone: bool,
    writer_gone: bool,
}

/// The end to read.
#[derive(Debug)]
pub struct Reader(Arc<Lock<Pipe>>);

/// The end to write.
#[derive(Debug)]
pub struct Writer(Arc<Lock<Pipe>>);

/// A pipe.
pub fn new() -> (Arc<Reader>, Arc<Writer>) {
    let bytes = VecDeque::with_capacity(CAPACITY);
    let pipe = Arc::new(Lock::new(Pipe { bytes, reader_gone: false, writer_gone: false }));
    (Arc::new(Reader(Arc::clone(&pipe))), Arc::new(Writer(pipe)))
}

impl Reader {
    /// Takes bytes out, as many as there are and fit; 0 if there will be no more. `None`: none yet, ask again.
    pub fn read(&self, buffer: &mut [u8]) -> Option<usize> {
        let mut pipe = self.0.lock();
        let length = buffer.len().min(pipe.bytes.len());
        if length == 0 && !pipe.writer_gone && !buffer.is_empty() {
            return None;
        }
        for (to, byte) in buffer.iter_mut().zip(pipe.bytes.drain(..length)) {
            *to = byte;
        }
        Some(length)
    }
}

impl Writer {
    /// Puts bytes in, as many as fit. `None`: none fit yet, ask again.
    ///
    /// # Errors
    ///
    /// Nobody reads any more.
    pub fn write(&self, bytes: &[u8]) -> Result<Option<usize>, Error> {
        let mut pipe = self.0.lock();
        if pipe.reader_gone {
            return Err(Error::BrokenPipe);
        }
        let length = bytes.len().min(CAPACITY - pipe.bytes.len());
        if length == 0 && !bytes.is_empty() {
            return Ok(None);
        }
        pipe.bytes.extend(&bytes[..length]);
        Ok(Some(length))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.lock().reader_gone = true;
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.lock().writer_gone = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_order_and_the_end_comes_last() {
        let (reader, writer) = new();
        let mut buffer = [0; 4];
        assert_eq!(reader.read(&mut buffer), None, "nothing yet");
        assert_eq!(writer.write(b"hello"), Ok(Some(5)));
        assert_eq!((reader.read(&mut buffer), &buffer), (Some(4), b"hell"));
        drop(writer);
        assert_eq!((reader.read(&mut buffer), buffer[0]), (Some(1), b'o'));
        assert_eq!(reader.read(&mut buffer), Some(0), "the end");
    }

    #[test]
    fn a_full_pipe_takes_no_more_until_it_is_read() {
        let (reader, writer) = new();
        let all = [1; CAPACITY + 1];
        assert_eq!(writer.write(&all), Ok(Some(CAPACITY)));
        assert_eq!(writer.write(&all), Ok(None));
        assert_eq!(reader.read(&mut [0; 10]), Some(10));
        assert_eq!(writer.write(&all), Ok(Some(10)));
    }

    #[test]
    fn a_writer_learns_that_the_last_reader_has_gone() {
        let (reader, writer) = new();
        let other = Arc::clone(&reader);
        drop(reader);
        assert_eq!(writer.write(b"x"), Ok(Some(1)));
        drop(other);
        assert_eq!(writer.write(b"x"), Err(Error::BrokenPipe));
    }
}
