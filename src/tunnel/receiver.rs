//! Reads the yamux frames of the other side and does what they say.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::frame::{ACK, FIN, HEADER_BYTES, Header, INITIAL_WINDOW, Kind, RST, SYN};
use super::mux::{Cell, MAX_WINDOW, Shared, lock};
use super::{Side, TunnelStream};

/// Streams that a device may try to open before its tunnel ends; each is reset.
const MAX_REFUSED_STREAMS: u32 = 1_000;

/// What is to be done beyond the streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// The other side asked for an answer.
    Ping,
    /// The other side takes no new streams; whether all is well with it.
    GoAway { normal: bool },
}

/// How the other side breaks the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// A frame that may not come here.
    Frame,
    /// A device that keeps opening streams.
    Streams,
}

/// A data frame whose body is still coming.
struct Body {
    left: u32,
    /// `None` for a stream that is gone.
    cell: Option<Arc<Cell>>,
    header: Header,
}

/// Reads frames.
pub struct Receiver {
    shared: Arc<Shared>,
    /// Where streams go that the other side opens; `None` where it may not.
    incoming: Option<mpsc::Sender<TunnelStream>>,
    header: [u8; HEADER_BYTES],
    header_len: usize,
    body: Option<Body>,
    refused: u32,
}

impl Receiver {
    /// Reads for `shared`; without `incoming` streams of the other side are refused.
    pub fn new(shared: Arc<Shared>, incoming: Option<mpsc::Sender<TunnelStream>>) -> Self {
        Self {
            shared,
            incoming,
            header: [0; HEADER_BYTES],
            header_len: 0,
            body: None,
            refused: 0,
        }
    }

    /// Takes bytes of the frames, cut anywhere; `notify` hears what concerns the tunnel as a whole.
    ///
    /// # Errors
    /// When the other side breaks the protocol; nothing more can be read then.
    pub fn receive(
        &mut self,
        mut bytes: &[u8],
        mut notify: impl FnMut(Notice),
    ) -> Result<(), Violation> {
        while !bytes.is_empty() {
            if let Some(body) = &mut self.body {
                let taken = bytes.len().min(body.left as usize);
                if let Some(cell) = &body.cell {
                    let waker = lock(cell).push(&bytes[..taken]);
                    waker.into_iter().for_each(std::task::Waker::wake);
                }
                bytes = &bytes[taken..];
                body.left -= taken as u32;
                if body.left == 0 {
                    self.end_body();
                }
                continue;
            }
            let taken = bytes.len().min(HEADER_BYTES - self.header_len);
            let end = self.header_len + taken;
            self.header[self.header_len..end].copy_from_slice(&bytes[..taken]);
            self.header_len = end;
            bytes = &bytes[taken..];
            if end == HEADER_BYTES {
                self.header_len = 0;
                let header = Header::decode(self.header).ok_or(Violation::Frame)?;
                self.on_frame(header, &mut notify)?;
            }
        }
        Ok(())
    }

    fn on_frame(
        &mut self,
        header: Header,
        notify: &mut impl FnMut(Notice),
    ) -> Result<(), Violation> {
        match header.kind {
            Kind::Ping if header.has(SYN) => {
                notify(Notice::Ping);
                let mut table = self.shared.table();
                table.outbox.push_header(Header {
                    flags: ACK,
                    ..header
                });
                self.shared.call_driver(table);
                Ok(())
            }
            // We ask with WebSocket pings only: an answer that nobody wants changes nothing.
            Kind::Ping => Ok(()),
            Kind::GoAway => {
                notify(Notice::GoAway {
                    normal: header.length == 0,
                });
                Ok(())
            }
            Kind::Data | Kind::WindowUpdate => self.on_stream_frame(header),
        }
    }

    fn on_stream_frame(&mut self, header: Header) -> Result<(), Violation> {
        if header.stream == 0 {
            return Err(Violation::Frame);
        }
        let cell = match header.has(SYN) {
            true => self.on_open(header.stream)?,
            false => self.on_known(header),
        };
        if let Some(cell) = &cell
            && header.has(ACK)
        {
            self.on_ack(cell);
        }
        match header.kind {
            Kind::Data => {
                let admitted = match &cell {
                    Some(cell) => lock(cell).admit(header.length),
                    // A first frame is within the window that every stream begins with.
                    None if header.has(SYN) => header.length <= INITIAL_WINDOW,
                    // It is for a stream that is gone: no window was larger.
                    None => header.length <= MAX_WINDOW,
                };
                if !admitted {
                    return Err(Violation::Frame);
                }
                self.body = Some(Body {
                    left: header.length,
                    cell,
                    header,
                });
                if header.length == 0 {
                    self.end_body();
                }
            }
            _ => {
                if let Some(cell) = &cell {
                    let opened = lock(cell).open_send_window(header.length);
                    let waker = opened.map_err(|()| Violation::Frame)?;
                    waker.into_iter().for_each(std::task::Waker::wake);
                    self.on_end(cell, header);
                }
            }
        }
        Ok(())
    }

    /// The stream of a frame, unless it is gone.
    fn on_known(&self, header: Header) -> Option<Arc<Cell>> {
        let mut table = self.shared.table();
        if header.kind == Kind::Data {
            table.users.note(header.stream, Instant::now());
        }
        table.streams.get(&header.stream).cloned()
    }

    /// A data frame is complete.
    fn end_body(&mut self) {
        if let Some(Body {
            cell: Some(cell),
            header,
            ..
        }) = self.body.take()
        {
            self.on_end(&cell, header);
        }
    }

    fn on_ack(&self, cell: &Arc<Cell>) {
        let mut state = lock(cell);
        if state.ack_due {
            let next = Shared::acknowledge(&mut self.shared.table(), &mut state);
            next.into_iter().for_each(std::task::Waker::wake);
        }
    }

    fn on_end(&self, cell: &Arc<Cell>, header: Header) {
        if header.has(RST) {
            self.shared.table().streams.remove(&header.stream);
            let wakers = lock(cell).cut();
            wakers
                .into_iter()
                .flatten()
                .for_each(std::task::Waker::wake);
        } else if header.has(FIN) {
            let mut state = lock(cell);
            state.remote_fin = true;
            let waker = state.reader.take();
            if state.local_fin {
                self.shared.table().streams.remove(&header.stream);
            }
            drop(state);
            waker.into_iter().for_each(std::task::Waker::wake);
        }
    }

    /// The other side opens a stream.
    fn on_open(&mut self, id: u32) -> Result<Option<Arc<Cell>>, Violation> {
        // The proxy is the yamux client: its ids are odd, those of devices even.
        let ours = (id % 2 == 1) == (self.shared.side() == Side::Proxy);
        let mut table = self.shared.table();
        if ours || table.streams.contains_key(&id) {
            return Err(Violation::Frame);
        }
        if let Some(incoming) = &self.incoming
            && let Ok(place) = incoming.try_reserve()
        {
            let (cell, stream) = self.shared.accept(&mut table, id);
            drop(table);
            let extra = lock(&cell).take_extra();
            place.send(stream);
            self.answer(id, ACK, extra);
            return Ok(Some(cell));
        }
        drop(table);
        self.answer(id, RST, 0);
        self.refused += 1;
        match self.refused > MAX_REFUSED_STREAMS && self.incoming.is_none() {
            true => Err(Violation::Streams),
            false => Ok(None),
        }
    }

    fn answer(&self, stream: u32, flags: u16, length: u32) {
        let mut table = self.shared.table();
        table.outbox.push_header(Header {
            kind: Kind::WindowUpdate,
            flags,
            stream,
            length,
        });
        self.shared.call_driver(table);
    }
}
