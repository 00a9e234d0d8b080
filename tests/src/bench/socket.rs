//! One MQTT connection of the generator: set up in plain calls, then non-blocking under one poller.
//!
//! Used by `load` and `growth`. Holds what the socket did not take and what was not a whole packet yet, nothing else.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

use super::packet;

/// How long a server may take for an answer while a run is set up.
const SETUP: Duration = Duration::from_secs(30);
/// Ready connections taken at once.
const EVENTS: usize = 256;

/// A connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    out: Vec<u8>,
    written: usize,
}

impl Connection {
    /// Connects and says hello; true when the server had the session already.
    ///
    /// # Errors
    /// The server refuses or says nothing.
    pub fn open(address: SocketAddr, id: &str, clean: bool) -> anyhow::Result<(Self, bool)> {
        let mut stream = TcpStream::connect(address).context("cannot connect")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SETUP))?;
        stream.write_all(&packet::connect(id, clean))?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).context("no CONNACK")?;
        if answer[0] != 0x20 || answer[3] != 0 {
            bail!("CONNECT refused: {answer:?}");
        }
        let connection = Self {
            stream,
            out: Vec::new(),
            written: 0,
        };
        Ok((connection, answer[2] == 1))
    }

    /// Subscribes to each filter.
    ///
    /// # Errors
    /// The server refuses or says nothing.
    pub fn subscribe(&mut self, filters: &[String], qos: u8) -> anyhow::Result<()> {
        self.stream.write_all(&packet::subscribe(filters, qos))?;
        let mut head = [0; 1];
        self.stream.read_exact(&mut head).context("no SUBACK")?;
        let mut length = 0;
        for shift in [0, 7] {
            let mut byte = [0; 1];
            self.stream.read_exact(&mut byte)?;
            length |= usize::from(byte[0] & 0x7F) << shift;
            if byte[0] & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        if head[0] != 0x90 || body.iter().skip(2).any(|code| *code != qos) {
            bail!("SUBSCRIBE refused: {head:?} {body:?}");
        }
        Ok(())
    }

    /// Reads no longer wait for bytes.
    ///
    /// # Errors
    /// The system refuses.
    pub fn no_waiting(&self) -> anyhow::Result<()> {
        Ok(self.stream.set_nonblocking(true)?)
    }

    /// Ends the connection in good order.
    pub fn leave(mut self) {
        // Whoever is gone already need not be told.
        let _ = self.stream.set_nonblocking(false);
        let _ = self.stream.write_all(&packet::disconnect());
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
        let _ = self.stream.read(&mut [0; 1]);
    }

    /// Whether the socket has not taken all it was given.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.written < self.out.len()
    }

    /// Gives the socket bytes; it takes what it can now.
    ///
    /// # Errors
    /// The connection broke.
    pub fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        if self.is_behind() {
            self.out.extend_from_slice(bytes);
            return self.flush();
        }
        let taken = take(&mut self.stream, bytes)?;
        self.out.clear();
        self.written = 0;
        self.out.extend_from_slice(&bytes[taken..]);
        Ok(())
    }

    /// Goes on with what is left.
    ///
    /// # Errors
    /// The connection broke.
    pub fn flush(&mut self) -> anyhow::Result<()> {
        if self.is_behind() {
            self.written += take(&mut self.stream, &self.out[self.written..])?;
        }
        if !self.is_behind() {
            self.out.clear();
            self.written = 0;
        }
        Ok(())
    }

    /// Reads what is there: 0 when nothing is.
    ///
    /// # Errors
    /// The connection broke or was closed.
    pub fn read(&mut self, buffer: &mut [u8]) -> anyhow::Result<usize> {
        match self.stream.read(buffer) {
            Ok(0) => bail!("the server closed the connection"),
            Ok(length) => Ok(length),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error).context("the connection broke"),
        }
    }
}

fn take(stream: &mut TcpStream, bytes: &[u8]) -> anyhow::Result<usize> {
    let mut taken = 0;
    while taken < bytes.len() {
        match stream.write(&bytes[taken..]) {
            Ok(length) => taken += length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error).context("the connection broke"),
        }
    }
    Ok(taken)
}

/// Tells which connections are ready.
pub struct Poller {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl std::fmt::Debug for Poller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Poller").finish_non_exhaustive()
    }
}

impl Poller {
    /// An empty one.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(EVENTS),
        })
    }

    /// Takes a connection in under a number; it no longer blocks from here on.
    ///
    /// # Errors
    /// The system refuses.
    pub fn add(&self, connection: &Connection, number: usize) -> anyhow::Result<()> {
        connection.stream.set_nonblocking(true)?;
        // Edges of "writable" come only after a socket was full, so they cost nothing while it is not.
        let flags = epoll::EventFlags::IN;
        epoll::add(
            &self.epoll,
            &connection.stream,
            epoll::EventData::new_u64(number as u64),
            flags,
        )?;
        Ok(())
    }

    /// Asks also (or no longer) for the socket's readiness to take bytes.
    ///
    /// # Errors
    /// The system refuses.
    pub fn watch(&self, connection: &Connection, number: usize, write: bool) -> anyhow::Result<()> {
        let mut flags = epoll::EventFlags::IN;
        if write {
            flags |= epoll::EventFlags::OUT;
        }
        let data = epoll::EventData::new_u64(number as u64);
        epoll::modify(&self.epoll, &connection.stream, data, flags)?;
        Ok(())
    }

    /// The numbers of ready connections, after at most `patience`.
    ///
    /// # Errors
    /// The system fails.
    pub fn wait(&mut self, patience: Duration, ready: &mut Vec<usize>) -> anyhow::Result<()> {
        let timeout = Timespec::try_from(patience)?;
        self.events.clear();
        match epoll::wait(
            &self.epoll,
            spare_capacity(&mut self.events),
            Some(&timeout),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        ready.clear();
        ready.extend(
            self.events
                .iter()
                .filter_map(|event| usize::try_from(event.data.u64()).ok()),
        );
        Ok(())
    }
}
