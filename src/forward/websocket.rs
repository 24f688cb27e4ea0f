//! Joins the two ends of a WebSocket. The bytes are spliced as they are; only frame headers are
//! followed (RFC 6455 §5.2), so that a close frame can be put between two frames.

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::meter::Counter;
use crate::auth::live::LiveStream;
use crate::types::random_bytes;

/// Close code for a login, or a device's place in its tenant, that has ended.
pub const NO_LONGER_VALID: u16 = 4401;
/// Close code for a process that stops (RFC 6455 registry, "Service Restart").
pub const RESTARTING: u16 = 1012;
/// Copy buffer per direction, in bytes.
const BUFFER: usize = 32 * 1024;
/// How long the end of a frame that is under way is waited for, and then the last words may take.
const GRACE: Duration = Duration::from_millis(500);
/// How long the news may take that a device's tunnel was cut on purpose.
const NEWS_WITHIN: Duration = Duration::from_secs(1);
/// How long one end may stay after the other has gone.
const LINGER: Duration = Duration::from_secs(10);

/// Follows WebSocket frames by their headers.
#[derive(Debug, Default)]
struct FrameFollower {
    header: [u8; 14],
    header_len: usize,
    payload_left: u64,
}

impl FrameFollower {
    fn is_between_frames(&self) -> bool {
        self.header_len == 0 && self.payload_left == 0
    }

    fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.payload_left > 0 {
                let here = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                let skip = self.payload_left.min(here);
                self.payload_left -= skip;
                bytes = &bytes[usize::try_from(skip).unwrap_or(bytes.len())..];
                continue;
            }
            self.header[self.header_len] = bytes[0];
            self.header_len += 1;
            bytes = &bytes[1..];
            if self.header_len >= 2 && self.header_len == self.needed() {
                self.payload_left = self.payload_len();
                self.header_len = 0;
            }
        }
    }

    /// Bytes of the header, known from its second byte on.
    fn needed(&self) -> usize {
        let mask = if self.header[1] & 0x80 == 0 { 0 } else { 4 };
        mask + match self.header[1] & 0x7f {
            126 => 4,
            127 => 10,
            _ => 2,
        }
    }

    fn payload_len(&self) -> u64 {
        match self.header[1] & 0x7f {
            126 => u64::from(u16::from_be_bytes([self.header[2], self.header[3]])),
            127 => {
                let mut length = [0; 8];
                length.copy_from_slice(&self.header[2..10]);
                u64::from_be_bytes(length)
            }
            short => u64::from(short),
        }
    }
}

/// A close frame; what a client sends is masked (RFC 6455 §5.3).
fn close_frame(code: u16, masked: bool) -> Vec<u8> {
    let [high, low] = code.to_be_bytes();
    if !masked {
        return vec![0x88, 2, high, low];
    }
    let mask = random_bytes::<4>();
    let [a, b, c, d] = mask;
    vec![0x88, 0x82, a, b, c, d, high ^ a, low ^ b]
}

enum End {
    Closed,
    Cut,
}

/// When both ends are told to part, and with which code.
#[derive(Default)]
struct Cut {
    now: CancellationToken,
    code: AtomicU16,
}

impl Cut {
    fn because(&self, code: u16) {
        self.code.store(code, Ordering::Release);
        self.now.cancel();
    }
}

/// Joins a client's end and a device's until both directions have ended, or `live` has, or the
/// process is `restarting`: then both are told with a close frame.
///
/// # Errors
/// When an end breaks off or does not let a frame end in time; both ends should then be reset.
pub async fn splice<C, D>(
    client: C,
    device: D,
    (live, counter): (&LiveStream, &Counter),
    restarting: &CancellationToken,
) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin,
    D: AsyncRead + AsyncWrite + Unpin,
{
    let (client_reads, client_writes) = tokio::io::split(client);
    let (device_reads, device_writes) = tokio::io::split(device);
    let (cut, gone) = (Cut::default(), CancellationToken::new());
    let sent = |bytes| counter.add_to_device(bytes);
    let received = |bytes| counter.add_from_device(bytes);
    let upwards = relay(client_reads, device_writes, (true, &sent), &cut, &gone);
    let downwards = relay(device_reads, client_writes, (false, &received), &cut, &gone);
    let both = async { tokio::try_join!(upwards, downwards).map(drop) };
    tokio::select! {
        result = both => result,
        () = async {
            tokio::select! {
                () = live.ended() => cut.because(NO_LONGER_VALID),
                () = restarting.cancelled() => cut.because(RESTARTING),
            }
            std::future::pending().await
        } => Ok(()),
        () = async {
            gone.cancelled().await;
            sleep(LINGER).await;
        } => Ok(()),
    }
}

async fn relay<R, W>(
    mut from: R,
    mut to: W,
    (masked, count): (bool, &(impl Fn(usize) + Sync)),
    cut: &Cut,
    gone: &CancellationToken,
) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut frames = FrameFollower::default();
    let copying = async {
        let end = copy(&mut from, &mut to, (count, &mut frames), &cut.now).await;
        // A tunnel that breaks may have been cut for a reason that this process hears of a little later.
        let is_device = !masked;
        match end {
            Err(_) if is_device && frames.is_between_frames() => {
                let told = timeout(NEWS_WITHIN, cut.now.cancelled()).await;
                told.map_or(end, |()| Ok(End::Cut))
            }
            end => end,
        }
    };
    let end = tokio::select! {
        end = copying => end?,
        // An end that stops within a frame is not waited for long.
        () = async {
            cut.now.cancelled().await;
            sleep(GRACE).await;
        } => return Err(io::ErrorKind::TimedOut.into()),
    };
    let last_words = async {
        if matches!(end, End::Cut) {
            let code = cut.code.load(Ordering::Acquire);
            to.write_all(&close_frame(code, masked)).await?;
        }
        to.shutdown().await
    };
    let limit = match end {
        End::Cut => GRACE,
        End::Closed => LINGER,
    };
    let said = timeout(limit, last_words).await;
    // A device that cannot be told any more must not keep the client from being told.
    if !(masked && matches!(end, End::Cut)) {
        said??;
    }
    gone.cancel();
    Ok(())
}

async fn copy<R, W>(
    from: &mut R,
    to: &mut W,
    (count, frames): (&(impl Fn(usize) + Sync), &mut FrameFollower),
    cut: &CancellationToken,
) -> io::Result<End>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = if frames.is_between_frames() {
            tokio::select! {
                biased;
                () = cut.cancelled() => return Ok(End::Cut),
                read = from.read(&mut buffer) => read?,
            }
        } else {
            from.read(&mut buffer).await?
        };
        if read == 0 {
            return Ok(End::Closed);
        }
        count(read);
        frames.follow(&buffer[..read]);
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::live::{LiveStreams, Right};
    use crate::types::LoginId;
    use proptest::prelude::*;

    fn frame(payload: usize, masked: bool) -> Vec<u8> {
        let bit = if masked { 0x80 } else { 0 };
        let mut bytes = vec![0x82];
        match payload {
            0..=125 => bytes.push(bit | payload as u8),
            126..=0xffff => {
                bytes.push(bit | 126);
                bytes.extend((payload as u16).to_be_bytes());
            }
            _ => {
                bytes.push(bit | 127);
                bytes.extend((payload as u64).to_be_bytes());
            }
        }
        bytes.extend(vec![0x88; if masked { 4 } else { 0 } + payload]);
        bytes
    }

    proptest! {
        #[test]
        fn frames_are_followed_however_they_are_cut(
            frames in proptest::collection::vec((0usize..70_000, any::<bool>()), 1..6),
            cut in 1usize..4_000,
        ) {
            let mut follower = FrameFollower::default();
            for (payload, masked) in frames {
                let bytes = frame(payload, masked);
                let (all_but_last, last) = bytes.split_at(bytes.len() - 1);
                all_but_last.chunks(cut).for_each(|chunk| follower.follow(chunk));
                prop_assert!(!follower.is_between_frames());
                follower.follow(last);
                prop_assert!(follower.is_between_frames());
            }
        }
    }

    #[tokio::test]
    async fn lo_03_the_end_of_a_login_puts_a_close_frame_between_frames() {
        let streams = LiveStreams::default();
        let login = Right::Login(LoginId::random());
        let live = streams.open(vec![login.clone()], tokio::time::Instant::now());
        let (mut browser, client) = tokio::io::duplex(64);
        let (mut origin, device_end) = tokio::io::duplex(64);
        let running = CancellationToken::new();
        let conversation = async {
            let started = frame(10, false);
            origin.write_all(&started[..5]).await.expect("half a frame");
            let mut got = vec![0; 5];
            browser.read_exact(&mut got).await.expect("it passes");
            streams.end(login);
            origin.write_all(&started[5..]).await.expect("the rest");
            let mut rest = Vec::new();
            browser.read_to_end(&mut rest).await.expect("a clean end");
            assert_eq!(rest[..started.len() - 5], started[5..]);
            assert_eq!(rest[started.len() - 5..], [0x88, 2, 0x11, 0x31]);
            let mut told = Vec::new();
            origin.read_to_end(&mut told).await.expect("a clean end");
            assert_eq!((told.len(), told[0], told[1]), (8, 0x88, 0x82));
        };
        let counter = Counter::default();
        let splice = splice(client, device_end, (&live, &counter), &running);
        let (spliced, ()) = tokio::join!(splice, conversation);
        spliced.expect("both ends were told");
    }

    crate::fuzzing::fuzz_target!(websocket_frames, |bytes| {
        let (mut whole, mut cut) = (FrameFollower::default(), FrameFollower::default());
        whole.follow(bytes);
        bytes.chunks(3).for_each(|piece| cut.follow(piece));
        let state = |follower: &FrameFollower| {
            let header = follower.header[..follower.header_len].to_vec();
            (header, follower.payload_left)
        };
        assert_eq!(state(&whole), state(&cut));
    });
}
