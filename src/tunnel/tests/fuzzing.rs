//! Whatever the other side sends: nothing panics, and nobody has to keep more than the windows allow.

use super::super::mux::{Shared, lock};
use super::super::receiver::Receiver;
use super::*;
use crate::websocket::{Decoder, Event};

/// Bytes in pieces of a size that the first byte tells.
fn pieces(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let size = bytes.first().map_or(1, |size| usize::from(*size) + 1);
    bytes.get(1..).unwrap_or_default().chunks(size)
}

crate::fuzzing::fuzz_target!(tunnel_messages, |bytes| {
    for masked in [false, true] {
        let mut decoder = Decoder::new(masked, 4096);
        let mut payload = 0;
        'input: for piece in pieces(bytes) {
            let mut piece = piece.to_vec();
            let mut at = 0;
            loop {
                match decoder.next(&mut piece[at..]) {
                    Ok((taken, Some(event))) => {
                        at += taken;
                        if let Event::Data(data) = event {
                            payload += data.len();
                        }
                    }
                    Ok((_, None)) => break,
                    Err(_) => break 'input,
                }
            }
        }
        assert!(payload <= bytes.len());
    }
});

crate::fuzzing::fuzz_target!(tunnel_frames, |bytes| {
    for side in [Side::Proxy, Side::Device] {
        let shared = Arc::new(Shared::new(&settings(side), Arc::default()));
        let (incoming, mut arrived) = mpsc::channel(4);
        let incoming = (side == Side::Device).then_some(incoming);
        let mut receiver = Receiver::new(Arc::clone(&shared), incoming);
        let opened: Vec<_> = (0..3).filter_map(|_| shared.open(true).ok()).collect();
        let mut notices = 0;
        for piece in pieces(bytes) {
            if receiver.receive(piece, |_| notices += 1).is_err() {
                break;
            }
        }
        assert!(notices <= bytes.len() / 12);
        let table = shared.table();
        let cells: Vec<_> = table.streams.values().cloned().collect();
        drop(table);
        for cell in cells {
            let state = lock(&cell);
            assert!(state.buffered() <= state.max_window as usize);
        }
        shared.part();
        while arrived.try_recv().is_ok() {}
        drop(opened);
        let table = shared.table();
        assert!(
            table.streams.is_empty(),
            "every stream is gone with its holder"
        );
    }
});
