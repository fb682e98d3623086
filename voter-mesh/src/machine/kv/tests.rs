#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ops::Bound;

use proptest::collection::vec;
use proptest::prelude::*;

use super::key::Sought;
use super::*;
use crate::ids::{SessionId, Term, TimeMs};
use crate::machine::{from_cbor, to_cbor};
use crate::testing::hex;

fn at(index: u64) -> Position {
    Position { index: LogIndex(index), term: Term(1), time: TimeMs(0), session: SessionId(1) }
}

fn put(key: &[u8], value: &[u8]) -> KvCommand {
    KvCommand::Put { key: key.to_vec(), value: value.to_vec() }
}

fn cas(expected: KvExpected, value: &[u8]) -> KvCommand {
    KvCommand::CompareAndSet { key: b"k".to_vec(), expected, value: value.to_vec() }
}

#[test]
fn a_key_has_the_index_of_its_last_write_as_its_version() {
    let mut kv = Kv::default();
    assert_eq!(kv.apply(put(b"k", b"1"), &at(5)), KvReply::Written { version: LogIndex(5) });
    assert_eq!(kv.apply(put(b"k", b"2"), &at(9)), KvReply::Written { version: LogIndex(9) });
    assert_eq!(kv.get(b"k"), Some(&KvValue { value: (&b"2"[..]).into(), version: LogIndex(9) }));
    assert_eq!(kv.apply(KvCommand::Delete { key: b"k".to_vec() }, &at(10)), KvReply::Deleted { existed: true });
    assert_eq!(kv.apply(KvCommand::Delete { key: b"k".to_vec() }, &at(11)), KvReply::Deleted { existed: false });
    assert!(kv.is_empty());
}

#[test]
fn compare_and_set_writes_only_what_is_as_expected() {
    let mut kv = Kv::default();
    let mismatch = |version: Option<u64>| KvReply::Mismatch { version: version.map(LogIndex) };
    assert_eq!(kv.apply(cas(KvExpected::Version(LogIndex(1)), b"a"), &at(1)), mismatch(None));
    assert_eq!(kv.apply(cas(KvExpected::Value(b"".to_vec()), b"a"), &at(1)), mismatch(None));
    assert_eq!(kv.apply(cas(KvExpected::Absent, b"a"), &at(2)), KvReply::Written { version: LogIndex(2) });
    assert_eq!(kv.apply(cas(KvExpected::Absent, b"b"), &at(3)), mismatch(Some(2)));
    assert_eq!(kv.apply(cas(KvExpected::Value(b"b".to_vec()), b"b"), &at(3)), mismatch(Some(2)));
    assert_eq!(kv.apply(cas(KvExpected::Value(b"a".to_vec()), b"b"), &at(4)), KvReply::Written { version: LogIndex(4) });
    assert_eq!(kv.apply(cas(KvExpected::Version(LogIndex(2)), b"c"), &at(5)), mismatch(Some(4)));
    assert_eq!(kv.apply(cas(KvExpected::Version(LogIndex(4)), b"c"), &at(6)), KvReply::Written { version: LogIndex(6) });
}

#[test]
fn a_key_over_the_limit_is_an_answer_and_changes_nothing() {
    let mut kv = Kv::default();
    assert_eq!(kv.apply(put(&[0; KEY_BYTES_MAX + 1], b""), &at(1)), KvReply::KeyTooLong);
    assert!(kv.is_empty());
    kv.apply(put(&[0; KEY_BYTES_MAX], b""), &at(1));
    assert_eq!(kv.len(), 1);
}

#[test]
fn ranges_are_in_the_order_of_bytes() {
    let mut kv = Kv::default();
    for (index, key) in [&b"b"[..], b"a", b"ab", b"", b"\xff"].into_iter().enumerate() {
        kv.apply(put(key, b"v"), &at(index as u64));
    }
    let keys = |from: Bound<&[u8]>, to: Bound<&[u8]>| kv.range((from, to)).map(|(key, _)| key.to_vec()).collect::<Vec<_>>();
    assert_eq!(keys(Bound::Included(b"a"), Bound::Excluded(b"b")), [&b"a"[..], b"ab"]);
    assert_eq!(keys(Bound::Unbounded, Bound::Unbounded), [&b""[..], b"a", b"ab", b"b", b"\xff"]);
}

#[test]
fn a_state_is_written_in_one_way_and_comes_back_whole_or_not_at_all() {
    let (mut one, mut other) = (Kv::default(), Kv::default());
    for number in 0..300_u64 {
        one.apply(put(&number.to_be_bytes(), b"v"), &at(number));
        let backwards = 299 - number;
        other.apply(put(&backwards.to_be_bytes(), b"v"), &at(backwards));
    }
    let written = |kv: &Kv| {
        let mut bytes = Vec::new();
        Kv::write(kv.image(), &mut bytes).unwrap();
        bytes
    };
    let bytes = written(&one);
    assert_eq!(bytes, written(&other), "however it came to be");
    assert_eq!(Kv::restore(&mut &bytes[..]).unwrap(), one);
    assert!(Kv::restore(&mut &bytes[..bytes.len() - 1]).is_err());
    assert!(Kv::restore(&mut &[&bytes[..], &[0]].concat()[..]).is_err());
    let mut claims_much = bytes.clone();
    claims_much[8..12].fill(0xFF);
    assert!(matches!(Kv::restore(&mut &claims_much[..]), Err(RestoreError::Malformed(_))));
}

#[test]
fn a_map_of_keys_in_order_is_whole_at_every_height() {
    let key = |number: u64| number.to_be_bytes();
    let value = |number: u64| KvValue { value: Bytes::new(), version: LogIndex(number) };
    for keys in [0, 1, 32, 33, 1023, 1024, 1025, 2048, 32_768, 32_769, 70_000] {
        let mut builder = Builder::default();
        (0..keys).for_each(|number| assert!(builder.push(Key::new(&key(2 * number)), value(number))));
        let mut map = builder.finish();
        assert_eq!(map.len() as u64, keys);
        assert!(map.range(..).map(|(_, value)| value.version.0).eq(0..keys));
        assert!(
            (0..keys).all(|number| map.get(&key(2 * number)) == Some(&value(number)) && map.get(&key(2 * number + 1)).is_none())
        );
        (0..keys).for_each(|number| map.insert(&key(2 * number + 1), value(number)));
        assert!(map.range(..).map(|(key, _)| key).eq((0..2 * keys).map(key)));
        assert!((0..2 * keys).all(|number| map.remove(&key(number))));
        assert!(map.is_empty());
    }
}

#[test]
fn golden_bytes_of_commands_and_replies() {
    let cas = cas(KvExpected::Version(LogIndex(5)), b"v");
    assert_eq!(hex(&to_cbor(&put(b"k", b"v")).unwrap()), GOLDEN_PUT);
    assert_eq!(hex(&to_cbor(&cas).unwrap()), GOLDEN_CAS);
    assert_eq!(hex(&to_cbor(&KvReply::Written { version: LogIndex(5) }).unwrap()), GOLDEN_WRITTEN);
    assert_eq!(from_cbor(&to_cbor(&cas).unwrap()), Ok(cas));
}

proptest! {
    /// What the short way takes, the general way takes as the same; what it lays out, the general way lays out.
    #[test]
    fn a_plain_put_and_its_reply_are_what_they_are_in_general(
        key in vec(any::<u8>(), 0..300),
        value in prop_oneof![vec(any::<u8>(), 0..30), vec(any::<u8>(), 200..300), vec(Just(7), 65_500..65_600)],
        (damage, place, byte) in (any::<bool>(), any::<prop::sample::Index>(), any::<u8>()),
        version in prop_oneof![0..30_u64, 200..300_u64, 65_500..65_600_u64, any::<u64>()],
    ) {
        let mut command = to_cbor(&put(&key, &value)).unwrap().to_vec();
        prop_assert_eq!(plain::put(&command).is_some(), key.len().max(value.len()) <= 65_535);
        if damage {
            let place = place.index(command.len());
            command[place] = byte;
            command.truncate(if byte % 3 == 0 { place } else { command.len() });
        }
        let (mut short, mut general) = (Kv::default(), Kv::default());
        let reply = from_cbor(&command).map(|command| to_cbor(&general.apply(command, &at(version))).unwrap());
        prop_assert_eq!(short.apply_encoded(&command, &at(version)), reply);
        prop_assert_eq!(short, general);
    }

    /// Zeros, and lengths about that of what lies in place, are where numbers could be mistaken for bytes.
    #[test]
    fn keys_are_ordered_as_their_bytes_are(
        one in vec(prop_oneof![Just(0_u8), Just(1), Just(0xff)], 0..28),
        other in vec(prop_oneof![Just(0_u8), Just(1), Just(0xff)], 0..28),
        shared in vec(any::<u8>(), 0..28),
    ) {
        for (one, other) in [(&one, &other), (&[&shared[..], &one].concat(), &[&shared[..], &other].concat())] {
            let key = Key::new(other);
            prop_assert_eq!(key.bytes(), &other[..]);
            prop_assert_eq!(Sought::new(one).order(&key), other.cmp(one));
        }
    }

    /// The map does as the standard one does, and what was copied stays as it was.
    #[test]
    fn a_map_that_is_shared_is_a_map(steps in vec((0..4_u8, 0..600_u64, any::<bool>()), 1..2000), long in any::<bool>()) {
        let key = |number: u64| if long { format!("a key that does not lie in its node: {number:04}") } else { format!("{number}") };
        let value = |number: u64| KvValue { value: (&b"v"[..]).into(), version: LogIndex(number) };
        let (mut map, mut model) = (KeyMap::default(), BTreeMap::new());
        let mut images = Vec::new();
        let is_equal = |map: &KeyMap, model: &BTreeMap<Vec<u8>, KvValue>| {
            map.len() == model.len() && map.range(..).eq(model.iter().map(|(key, value)| (&key[..], value)))
        };
        for (step, (deed, number, image)) in steps.into_iter().enumerate() {
            let bytes = key(number).into_bytes();
            match deed {
                // A stretch in order, so that there is a tree to speak of.
                0 => for number in number..number + 40 {
                    map.insert(key(number).as_bytes(), value(step as u64));
                    model.insert(key(number).into_bytes(), value(step as u64));
                },
                1 => {
                    map.insert(&bytes, value(step as u64));
                    model.insert(bytes.clone(), value(step as u64));
                }
                2 => prop_assert_eq!(map.remove(&bytes), model.remove(&bytes).is_some()),
                _ => for number in number..number + 40 {
                    prop_assert_eq!(map.remove(key(number).as_bytes()), model.remove(&key(number).into_bytes()).is_some());
                },
            }
            prop_assert_eq!(map.get(&bytes), model.get(&bytes));
            if image && images.len() < 4 {
                images.push((map.clone(), model.clone()));
            }
        }
        prop_assert!(is_equal(&map, &model));
        for (map, model) in &images {
            prop_assert!(is_equal(map, model));
        }
        let (from, to) = (key(250).into_bytes(), key(420).into_bytes());
        for bounds in [
            (Bound::Included(&from[..]), Bound::Excluded(&to[..])),
            (Bound::Excluded(&from[..]), Bound::Included(&to[..])),
            (Bound::Unbounded, Bound::Included(&from[..])),
        ] {
            let found = map.range(bounds).map(|(key, _)| key.to_vec());
            prop_assert!(found.eq(model.range::<[u8], _>(bounds).map(|(key, _)| key.clone())));
        }
        // In order, the same again; and nothing that is out of order.
        let mut again = Builder::default();
        for (key, value) in &model {
            prop_assert!(again.push(Key::new(key), value.clone()));
            prop_assert!(!again.push(Key::new(key), value.clone()));
        }
        prop_assert_eq!(again.finish(), map);
    }
}

const GOLDEN_PUT: &str = "a163707574a2636b6579416b6576616c75654176";
const GOLDEN_CAS: &str = "\
a16f636f6d706172655f616e645f736574a3636b6579416b6865787065637465
64a16776657273696f6e056576616c75654176";
const GOLDEN_WRITTEN: &str = "a1677772697474656ea16776657273696f6e05";
