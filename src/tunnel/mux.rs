//! What the driver and the streams of one tunnel share: the table of streams, what is to be sent, and
//! the end.
//!
//! Two kinds of lock: one of each stream, one of the table with the outbox. A stream's may be held while
//! the table's is taken, never the other way round; neither is held over a wait.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::frame::{FIN, Header, INITIAL_WINDOW, Kind, RST, SYN};
use super::outbox::Outbox;
use super::sharing::Users;
use super::stream_state::StreamState;
use super::{
    CloseReason, EndReason, OpenError, Side, Traffic, TunnelSettings, TunnelStream, WindowBudget,
};

/// How far the window of a stream may grow for a device without the subprotocol, in bytes: such a device
/// may send all of it in one WebSocket message.
const PLAIN_MAX_WINDOW: u32 = 1024 * 1024;
/// Largest window of any stream, in bytes.
pub const MAX_WINDOW: u32 = 64 * 1024 * 1024;
/// Largest window that a stream starts with because others of its tunnel have needed it, in bytes.
const MAX_START_WINDOW: u32 = 4 * 1024 * 1024;
/// Streams that may wait for the other side to accept them. Over so many hashicorp/yamux resets one.
const MAX_UNACKNOWLEDGED: usize = 256;
/// Round trips below this do not ask for larger windows from the start, nor for ones that make other streams wait.
const NEAR: Duration = Duration::from_millis(2);

/// One stream's state behind its lock.
pub type Cell = Mutex<StreamState>;

/// Locks a stream's state.
pub fn lock(cell: &Cell) -> MutexGuard<'_, StreamState> {
    cell.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The table of streams and what goes with it.
#[derive(Default)]
pub struct Table {
    /// All streams that either side may still use.
    pub streams: HashMap<u32, Arc<Cell>>,
    /// What is to be sent.
    pub outbox: Outbox,
    /// Who used the tunnel last.
    pub users: Users,
    /// What a holder asked for.
    pub close: Option<CloseReason>,
    /// The end has begun: no stream gets anything more.
    pub parting: bool,
    /// The other side takes no new streams.
    pub peer_gone_away: bool,
    next_id: u32,
    slots: usize,
    /// Streams of ours that the other side has not acknowledged, and those that wait until it has.
    unacknowledged: usize,
    waiting_for_ack: VecDeque<(u32, Waker)>,
    /// Bytes by which windows have outgrown their start.
    grown: usize,
    /// What a new stream's window starts with.
    start_window: u32,
    driver_called: bool,
}

/// What everybody knows of a tunnel.
pub struct Shared {
    table: Mutex<Table>,
    driver: AtomicWaker,
    side: Side,
    max_streams: usize,
    max_window: u32,
    session_budget: usize,
    process_budget: WindowBudget,
    /// Bytes that crossed the connection.
    pub traffic: Arc<Traffic>,
    /// Streams with a slot.
    pub open_streams: AtomicUsize,
    /// Milliseconds since the epoch; 0 before the first echo.
    pub last_echo: AtomicI64,
    /// Microseconds; `u64::MAX` before the first echo.
    pub rtt: AtomicU64,
    /// The least of all round-trip times, in microseconds: what the way takes when nothing is queued.
    pub least_rtt: AtomicU64,
    /// The tunnel is over.
    pub ended: CancellationToken,
    /// Why.
    pub end_reason: OnceLock<EndReason>,
}

impl Shared {
    /// A tunnel without streams.
    pub fn new(settings: &TunnelSettings, traffic: Arc<Traffic>) -> Self {
        let table = Table {
            // The proxy is the yamux client, with odd ids.
            next_id: if settings.side == Side::Proxy { 1 } else { 2 },
            start_window: INITIAL_WINDOW,
            ..Table::default()
        };
        Self {
            table: Mutex::new(table),
            driver: AtomicWaker::new(),
            side: settings.side,
            max_streams: settings.max_streams,
            max_window: if settings.subprotocol {
                MAX_WINDOW
            } else {
                PLAIN_MAX_WINDOW
            },
            session_budget: settings.window_budget,
            process_budget: settings.process_budget.clone(),
            traffic,
            open_streams: AtomicUsize::new(0),
            last_echo: AtomicI64::new(0),
            rtt: AtomicU64::new(u64::MAX),
            least_rtt: AtomicU64::new(u64::MAX),
            ended: CancellationToken::new(),
            end_reason: OnceLock::new(),
        }
    }

    /// Which end this is.
    pub fn side(&self) -> Side {
        self.side
    }

    /// Locks the table.
    pub fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the driver woken from now on.
    pub fn register_driver(&self, waker: &Waker) {
        self.driver.register(waker);
    }

    /// Lets the driver look at the table, which the caller has just changed.
    pub fn call_driver(&self, mut table: MutexGuard<'_, Table>) {
        let called = std::mem::replace(&mut table.driver_called, true);
        drop(table);
        if !called {
            self.driver.wake();
        }
    }

    /// The driver looks: whoever changes something after this must call again.
    pub fn driver_looks(&self, table: &mut Table) {
        table.driver_called = false;
    }

    /// Opens a stream from this side; without `slot` it does not count towards the limit.
    pub fn open(self: &Arc<Self>, slot: bool) -> Result<TunnelStream, OpenError> {
        let mut table = self.table();
        if table.parting || table.peer_gone_away {
            return Err(OpenError::Ended);
        }
        if slot && table.slots >= self.max_streams {
            return Err(OpenError::Busy);
        }
        let id = table.next_id;
        // Two thousand million streams later the device has to connect again.
        table.next_id = id.checked_add(2).ok_or(OpenError::Ended)?;
        let extra = self.claim_start(&mut table);
        let cell = Arc::new(Mutex::new(StreamState::opened(extra)));
        table.streams.insert(id, Arc::clone(&cell));
        if slot {
            table.slots += 1;
            self.open_streams.store(table.slots, Ordering::Relaxed);
        }
        drop(table);
        Ok(TunnelStream::new(id, cell, Arc::clone(self), slot))
    }

    /// Takes a stream that the other side opens into the table.
    pub fn accept(self: &Arc<Self>, table: &mut Table, id: u32) -> (Arc<Cell>, TunnelStream) {
        let extra = self.claim_start(table);
        let cell = Arc::new(Mutex::new(StreamState::accepted(extra)));
        table.streams.insert(id, Arc::clone(&cell));
        let stream = TunnelStream::new(id, Arc::clone(&cell), Arc::clone(self), false);
        (cell, stream)
    }

    fn claim_start(&self, table: &mut Table) -> u32 {
        let wanted = table.start_window.min(self.max_window) - INITIAL_WINDOW;
        if self.claim(table, wanted) { wanted } else { 0 }
    }

    /// Makes a window larger by `bytes`, if the budgets allow. Half of what is left of the tunnel's own
    /// stays for others.
    fn claim(&self, table: &mut Table, bytes: u32) -> bool {
        let bytes = bytes as usize;
        if table.grown + 2 * bytes > self.session_budget || !self.process_budget.claim(bytes) {
            return false;
        }
        table.grown += bytes;
        true
    }

    /// Gives back what a window had more.
    fn unclaim(&self, table: &mut Table, bytes: u32) {
        table.grown -= bytes as usize;
        self.process_budget.give_back(bytes as usize);
    }

    /// Accounts for bytes that a stream's reader has taken, and tells the other side when it is worth it.
    pub fn credit(&self, id: u32, state: &mut StreamState, bytes: u32) {
        let Some(due) = state.consume(bytes) else {
            return;
        };
        let mut table = self.table();
        if table.parting {
            return;
        }
        let least = self.least_rtt.load(Ordering::Relaxed);
        // Half a window in less than two round trips: the sender waits for us, or nearly so.
        let fast = least != u64::MAX && due.since_last < Duration::from_micros(least) * 2;
        let more = state
            .max_window
            .min(self.max_window.saturating_sub(state.max_window));
        let mut delta = due.bytes;
        // On a short way a large window makes bulk cheaper, since it moves in larger lots. All others wait for these.
        let near = Duration::from_micros(least) < NEAR;
        if near && table.users.others_than(id, Instant::now()) {
            let less = delta.min(state.max_window - INITIAL_WINDOW);
            state.max_window -= less;
            delta -= less;
            self.unclaim(&mut table, less);
        } else if fast && more > 0 && self.claim(&mut table, more) {
            state.max_window += more;
            delta += more;
            if Duration::from_micros(least) >= NEAR {
                table.start_window = state
                    .max_window
                    .min(MAX_START_WINDOW)
                    .max(table.start_window);
            }
        }
        state.tell(delta);
        if delta == 0 {
            return;
        }
        table.outbox.push_header(Header {
            kind: Kind::WindowUpdate,
            flags: 0,
            stream: id,
            length: delta,
        });
        self.call_driver(table);
    }

    /// Sends the end of a stream's sending half.
    pub fn finish(&self, id: u32, state: &mut StreamState) {
        let mut table = self.table();
        if table.parting {
            return;
        }
        let syn = Self::take_syn(&mut table, state);
        table.outbox.push_header(Header {
            kind: Kind::WindowUpdate,
            flags: syn | FIN,
            stream: id,
            length: state.take_extra(),
        });
        if state.remote_fin {
            table.streams.remove(&id);
        }
        self.call_driver(table);
    }

    /// Lets go of a stream whose holder has gone: what is not complete is reset.
    pub fn release(&self, id: u32, state: &mut StreamState, slot: bool) {
        let mut table = self.table();
        self.unclaim(&mut table, state.max_window - INITIAL_WINDOW);
        state.max_window = INITIAL_WINDOW;
        if slot {
            table.slots -= 1;
            self.open_streams.store(table.slots, Ordering::Relaxed);
        }
        table.streams.remove(&id);
        table.outbox.forget(id);
        table.waiting_for_ack.retain(|(waiting, _)| *waiting != id);
        let known = !std::mem::take(&mut state.syn_due);
        let next = Self::acknowledge(&mut table, state);
        let whole = state.local_fin && state.remote_fin;
        if known && !whole && !state.reset && !table.parting {
            table.outbox.push_header(Header {
                kind: Kind::WindowUpdate,
                flags: RST,
                stream: id,
                length: 0,
            });
            self.call_driver(table);
        } else if table.peer_gone_away {
            self.call_driver(table);
        } else {
            drop(table);
        }
        next.into_iter().for_each(Waker::wake);
    }

    /// SYN for the first frame of a stream; nothing for any other.
    pub fn take_syn(table: &mut Table, state: &mut StreamState) -> u16 {
        if !std::mem::take(&mut state.syn_due) {
            return 0;
        }
        state.ack_due = true;
        table.unacknowledged += 1;
        SYN
    }

    /// Whether a stream may send its first frame; else it is called when it may.
    pub fn may_begin(table: &mut Table, id: u32, waker: &Waker) -> bool {
        if table.unacknowledged < MAX_UNACKNOWLEDGED {
            return true;
        }
        let waiting = &mut table.waiting_for_ack;
        match waiting.iter_mut().find(|(waiting, _)| *waiting == id) {
            Some((_, known)) => known.clone_from(waker),
            None => waiting.push_back((id, waker.clone())),
        }
        false
    }

    /// The other side has accepted a stream, or it is gone; returns who may begin now.
    pub fn acknowledge(table: &mut Table, state: &mut StreamState) -> Option<Waker> {
        if std::mem::take(&mut state.ack_due) {
            table.unacknowledged -= 1;
        }
        if table.unacknowledged >= MAX_UNACKNOWLEDGED {
            return None;
        }
        table.waiting_for_ack.pop_front().map(|(_, waker)| waker)
    }

    /// Bytes by which windows have outgrown their start.
    #[cfg(test)]
    pub fn grown(&self) -> usize {
        self.table().grown
    }

    /// Begins the end: every stream is cut off, and everybody who waits is told.
    pub fn part(&self) {
        let (streams, waiting) = {
            let mut table = self.table();
            table.parting = true;
            let mut waiting = table.outbox.take_waiting();
            waiting.extend(table.waiting_for_ack.drain(..).map(|(_, waker)| waker));
            (std::mem::take(&mut table.streams), waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
        for cell in streams.into_values() {
            let wakers = lock(&cell).cut();
            wakers.into_iter().flatten().for_each(Waker::wake);
        }
    }
}
