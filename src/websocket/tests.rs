//! Frames, in any pieces.

use super::*;
use proptest::prelude::*;

const KEY: Mask = Some([1, 2, 3, 4]);

fn message(payload: &[u8], mask: Mask) -> Vec<u8> {
    let mut buffer = vec![0; MAX_HEADER];
    buffer.extend_from_slice(payload);
    let start = seal_binary(&mut buffer, mask);
    buffer.split_off(start)
}

/// Everything that a decoder says about bytes that come in pieces of `cut`.
fn decode(
    decoder: &mut Decoder,
    bytes: &[u8],
    cut: usize,
) -> Result<(Vec<u8>, Vec<String>), Violation> {
    let (mut data, mut others) = (Vec::new(), Vec::new());
    for piece in bytes.chunks(cut) {
        let mut piece = piece.to_vec();
        let mut at = 0;
        while let (taken, Some(event)) = decoder.next(&mut piece[at..])? {
            at += taken;
            match event {
                Event::Data(bytes) => data.extend_from_slice(bytes),
                other => others.push(format!("{other:?}")),
            }
        }
    }
    Ok((data, others))
}

#[test]
fn control_frames_come_between_and_within_messages() {
    let mut bytes = vec![0x02, 0x81];
    bytes.extend([1, 2, 3, 4, b'a' ^ 1]);
    push_ping(&mut bytes, b"nonce", KEY);
    bytes.extend([0x80, 0x81, 1, 2, 3, 4, b'b' ^ 1]);
    push_pong(&mut bytes, b"", KEY);
    push_close(&mut bytes, 1012, KEY);
    for cut in 1..bytes.len() {
        let mut decoder = Decoder::new(true, 100);
        let (data, others) = decode(&mut decoder, &bytes, cut).expect("right frames");
        assert_eq!(data, b"ab");
        let expected = [
            "Ping([110, 111, 110, 99, 101])",
            "Pong([])",
            "Close(Some(1012))",
        ];
        assert_eq!(others, expected);
    }
}

#[test]
fn what_breaks_the_protocol_is_refused() {
    for (bytes, violation) in [
        (&[0x81, 0x80, 0, 0, 0, 0][..], Violation::Text),
        (&[0x82, 0x01, 7], Violation::Protocol),
        (&[0xc2, 0x80, 0, 0, 0, 0], Violation::Protocol),
        (&[0x80, 0x80, 0, 0, 0, 0], Violation::Protocol),
        (&[0x83, 0x80, 0, 0, 0, 0], Violation::Protocol),
        (&[0x09, 0x80, 0, 0, 0, 0], Violation::Protocol),
        (&[0x89, 0xfe, 0, 126, 0, 0, 0, 0], Violation::Protocol),
        (&[0x88, 0x81, 0, 0, 0, 0, 3], Violation::Protocol),
        (&[0x82, 0xfe, 0x10, 0, 0, 0, 0, 0], Violation::TooLong),
        (
            &[
                0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0,
            ],
            Violation::TooLong,
        ),
    ] {
        let mut decoder = Decoder::new(true, 0xfff);
        assert_eq!(
            decode(&mut decoder, bytes, 100),
            Err(violation),
            "{bytes:x?}"
        );
    }
}

#[test]
fn fragments_count_towards_one_message() {
    let fragment = [0x02, 0x82, 0, 0, 0, 0, 7, 7];
    let more = [0x00, 0x82, 0, 0, 0, 0, 7, 7];
    let mut decoder = Decoder::new(true, 4);
    assert!(decode(&mut decoder, &fragment, 3).is_ok());
    assert!(decode(&mut decoder, &more, 3).is_ok());
    assert_eq!(decode(&mut decoder, &more, 3), Err(Violation::TooLong));
}

proptest! {
    #[test]
    fn messages_come_out_as_they_went_in(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..6),
        cut in 1usize..400,
        key in any::<Mask>(),
    ) {
        let wire: Vec<u8> = payloads.iter().flat_map(|payload| message(payload, key)).collect();
        let mut decoder = Decoder::new(key.is_some(), 1000);
        let (data, others) = decode(&mut decoder, &wire, cut).expect("right frames");
        prop_assert_eq!(data, payloads.concat());
        prop_assert!(others.is_empty());
    }

    #[test]
    fn long_messages_have_the_longer_lengths(len in 60_000usize..70_000) {
        let payload = vec![9; len];
        let (data, _) = decode(&mut Decoder::new(false, len), &message(&payload, None), 4096)
            .expect("a right frame");
        prop_assert_eq!(data, payload);
    }

    #[test]
    fn masking_twice_changes_nothing(bytes in prop::collection::vec(any::<u8>(), 0..50), key in any::<[u8; 4]>()) {
        let mut masked = bytes.clone();
        apply_mask(&mut masked, key);
        let one_by_one: Vec<u8> = bytes.iter().enumerate().map(|(i, byte)| byte ^ key[i % 4]).collect();
        prop_assert_eq!(&masked, &one_by_one);
        apply_mask(&mut masked, key);
        prop_assert_eq!(masked, bytes);
    }

    #[test]
    fn no_input_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 1usize..50) {
        // Only panics count here.
        let _ = decode(&mut Decoder::new(true, 150), &bytes, cut);
        let _ = decode(&mut Decoder::new(false, 150), &bytes, cut);
    }
}
