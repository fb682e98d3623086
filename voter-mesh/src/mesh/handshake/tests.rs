#![allow(clippy::unwrap_used)]

use bytes::BytesMut;

use super::*;

fn peer(seat: u16) -> PeerHello {
    PeerHello {
        seat: Seat(seat),
        id: None,
        directory: DirectoryId([seat as u8; 16]),
        incarnation: Incarnation(100 + u64::from(seat)),
        identity: None,
        machine: ("kv".into(), 1),
        first: RunIndex(2),
        last: (Term(3), RunIndex(4)),
        suspect: false,
        endpoints: vec!["ws://127.0.0.1:7400".into()],
    }
}

fn formed(seat: u16, cluster: u8, epoch: u32) -> PeerHello {
    let identity = Identity { cluster: ClusterId([cluster; 16]), epoch: Epoch(epoch), room: RoomId(0) };
    PeerHello { id: Some(RaftId::new(Seat(seat), 1)), identity: Some(identity), ..peer(seat) }
}

fn secret(text: &str) -> MeshSecret {
    MeshSecret::new(text.as_bytes()).unwrap()
}

fn dial(from: PeerHello, to: u16) -> Hello {
    Hello { kind: LinkKind::Consensus, nonce: [1; 32], dial: 5, to: Seat(to), to_incarnation: None, from }
}

/// What arrives when `bytes` are sent.
fn arrives(bytes: Bytes) -> Bytes {
    codec::split_frame(&mut BytesMut::from(&bytes[..]), HANDSHAKE_FRAME_BYTES_MAX).unwrap().unwrap()
}

/// A whole handshake. Both sides' ends, and the frames of the dialler.
fn meet(
    dialler: (Hello, Option<&MeshSecret>),
    acceptor: (PeerHello, Option<&MeshSecret>),
) -> (Result<PeerHello, HandshakeError>, Result<(), HandshakeError>) {
    let (dialling, hello) = Dialling::new(dialler.0, dialler.1).unwrap();
    let accepting = Accepting::new(acceptor.0, [2; 32], acceptor.1);
    let (accepted, hello) = match accepting.handle_hello(&arrives(hello)) {
        Ok(accepted) => accepted,
        Err(error) => return (Err(told(&error)), Err(error)),
    };
    let (dialled, proof) = match dialling.handle_hello(&arrives(hello)) {
        Ok(dialled) => dialled,
        Err(error) => return (Err(error), Err(CodecError::Truncated.into())),
    };
    let proven = match accepted.handle_proof(&arrives(proof)) {
        Ok(proven) => proven,
        Err(error) => {
            let reply = arrives(error.reply().unwrap());
            return (dialled.handle_verdict(&reply), Err(error));
        }
    };
    let judged = proven.judge();
    let verdict = proven.verdict(&judged).unwrap();
    (dialled.handle_verdict(&arrives(verdict)), judged.map_err(HandshakeError::Refuse))
}

fn told(error: &HandshakeError) -> HandshakeError {
    expect(kind::HELLO, &arrives(error.reply().unwrap())).unwrap_err()
}

#[test]
fn two_servers_with_one_secret_learn_who_the_other_is() {
    let secret = secret("a secret of the cluster");
    let (dialler, acceptor) = meet((dial(peer(1), 2), Some(&secret)), (formed(2, 7, 1), Some(&secret)));
    assert_eq!(dialler, Ok(formed(2, 7, 1)));
    assert_eq!(acceptor, Ok(()));
    let without = meet((dial(peer(1), 2), None), (peer(2), None));
    assert_eq!(without, (Ok(peer(2)), Ok(())));
}

#[test]
fn who_has_another_secret_or_none_is_refused_and_told_no_more() {
    let (ours, theirs) = (secret("a secret of the cluster"), secret("a secret of another"));
    for (dialler, acceptor) in [(Some(&theirs), Some(&ours)), (None, Some(&ours)), (Some(&ours), None)] {
        let met = meet((dial(formed(1, 1, 1), 2), dialler), (formed(2, 2, 1), acceptor));
        assert_eq!(met.0, Err(HandshakeError::Refused(Refusal::Unproven)));
        assert_eq!(met.1, Err(HandshakeError::Refuse(Refusal::Unproven)));
    }
}

#[test]
fn a_replayed_dialler_fails_on_the_fresh_nonce() {
    let secret = secret("a secret of the cluster");
    let (dialling, hello) = Dialling::new(dial(peer(1), 2), Some(&secret)).unwrap();
    let hello = arrives(hello);
    let (accepted, answer) = Accepting::new(peer(2), [2; 32], Some(&secret)).handle_hello(&hello).unwrap();
    let (_, proof) = dialling.handle_hello(&arrives(answer)).unwrap();
    let proof = arrives(proof);
    assert!(accepted.handle_proof(&proof).is_ok());
    let (again, _) = Accepting::new(peer(2), [3; 32], Some(&secret)).handle_hello(&hello).unwrap();
    assert_eq!(again.handle_proof(&proof).err(), Some(HandshakeError::Refuse(Refusal::Unproven)));
}

/// A handshake up to the verdict; always the same one. With the dialler's proof as it was sent.
fn until_verdict(secret: &MeshSecret) -> (Dialled, Bytes, Proven) {
    let (dialling, hello) = Dialling::new(dial(peer(1), 2), Some(secret)).unwrap();
    let (accepted, answer) = Accepting::new(peer(2), [2; 32], Some(secret)).handle_hello(&arrives(hello)).unwrap();
    let (dialled, proof) = dialling.handle_hello(&arrives(answer)).unwrap();
    let proven = accepted.handle_proof(&arrives(proof.clone())).unwrap();
    (dialled, proof, proven)
}

#[test]
fn a_reflected_proof_is_no_verdict() {
    let (dialled, proof, _) = until_verdict(&secret("a secret of the cluster"));
    let mut reflected = BytesMut::from(&proof[..]);
    reflected[4] = kind::VERDICT;
    let verdict = dialled.handle_verdict(&arrives(reflected.freeze()));
    assert_eq!(verdict, Err(HandshakeError::Refuse(Refusal::Unproven)));
}

#[test]
fn a_refusal_cannot_be_turned_into_an_admission_on_its_way() {
    let (dialled, _, proven) = until_verdict(&secret("a secret of the cluster"));
    let head = |verdict| codec::open(arrives(proven.verdict(&verdict).unwrap())).unwrap().1;
    let (refused, admitted) = (head(Err(Refusal::Full)), head(Ok(())));
    let mixed = [&refused[..MAC_BYTES], &admitted[MAC_BYTES..]].concat();
    let mixed = codec::frame(kind::VERDICT, 0, |head| head.put_slice(&mixed)).unwrap().freeze();
    assert_eq!(dialled.handle_verdict(&arrives(mixed)), Err(HandshakeError::Refuse(Refusal::Unproven)));
}

#[test]
fn another_cluster_epoch_machine_seat_or_directory_is_told_why() {
    let secret = secret("a secret of the cluster");
    let machine = PeerHello { machine: ("kv".into(), 2), ..peer(1) };
    let copied = PeerHello { directory: peer(2).directory, ..peer(1) };
    for (dialler, acceptor, refusal) in [
        (dial(formed(1, 1, 1), 2), formed(2, 2, 1), Refusal::Cluster),
        (dial(formed(1, 1, 1), 2), formed(2, 1, 2), Refusal::Epoch),
        (dial(machine, 2), peer(2), Refusal::Machine("kv".into(), 1)),
        (dial(peer(1), 3), peer(2), Refusal::Seat),
        (dial(peer(2), 2), peer(2), Refusal::Seat),
        (dial(copied, 2), peer(2), Refusal::Directory),
    ] {
        let met = meet((dialler, Some(&secret)), (acceptor, Some(&secret)));
        assert_eq!(met, (Err(HandshakeError::Refused(refusal.clone())), Err(HandshakeError::Refuse(refusal))));
    }
}

#[test]
fn a_bulk_connection_must_name_the_incarnation_that_it_stands_beside() {
    let bulk = |incarnation| Hello { kind: LinkKind::Bulk, to_incarnation: Some(Incarnation(incarnation)), ..dial(peer(1), 2) };
    assert_eq!(meet((bulk(102), None), (peer(2), None)).1, Ok(()));
    assert_eq!(meet((bulk(101), None), (peer(2), None)).0, Err(HandshakeError::Refused(Refusal::NoLink)));
}

#[test]
fn another_version_is_named_and_another_protocol_is_not_answered() {
    let hello = dial(peer(1), 2).encode().unwrap();
    let with = |at: usize, byte: u8| {
        let mut bytes = BytesMut::from(&hello[..]);
        bytes[at] = byte;
        Accepting::new(peer(2), [2; 32], None).handle_hello(&arrives(bytes.freeze())).map(drop).unwrap_err()
    };
    let version = with(4 + 5 + 4, 9);
    assert_eq!(version, HandshakeError::Refuse(Refusal::Version(9)));
    assert_eq!(told(&version), HandshakeError::Refused(Refusal::Version(PROTOCOL_VERSION)));
    let magic = with(4 + 5, b'X');
    assert_eq!(magic, CodecError::Field("magic").into());
    assert_eq!(magic.reply(), None);
}

#[test]
fn who_has_proven_nothing_cannot_refuse_for_a_proven_reason() {
    let (dialling, _) = Dialling::new(dial(peer(1), 2), None).unwrap();
    let forged = arrives(bare(&Refusal::Cluster).unwrap());
    assert_eq!(dialling.handle_hello(&forged).err(), Some(CodecError::Field("refusal").into()));
}

#[test]
fn a_hello_over_its_limits_is_neither_sent_nor_taken() {
    let long = PeerHello { endpoints: vec!["x".repeat(HANDSHAKE_FRAME_BYTES_MAX)], ..peer(1) };
    assert!(Dialling::new(dial(long, 2), None).is_err());
    let id_of_another = PeerHello { id: Some(RaftId::new(Seat(3), 1)), ..peer(1) };
    let (_, hello) = Dialling::new(dial(id_of_another, 2), None).unwrap();
    let refused = Accepting::new(peer(2), [2; 32], None).handle_hello(&arrives(hello)).map(drop);
    assert_eq!(refused, Err(CodecError::Field("raft id").into()));
}

#[test]
fn without_a_secret_only_loopback_is_allowed() {
    let secret = secret("a secret of the cluster");
    for (address, allowed) in [
        ("127.0.0.1:1", true),
        ("127.8.8.8:1", true),
        ("[::1]:1", true),
        ("[::ffff:127.0.0.1]:1", true),
        ("0.0.0.0:1", false),
        ("[::]:1", false),
        ("10.0.0.1:1", false),
    ] {
        let address = address.parse().unwrap();
        assert_eq!(bind_allowed(address, None).is_ok(), allowed, "{address}");
        assert_eq!(bind_allowed(address, Some(&secret)), Ok(()));
    }
    assert_eq!(MeshSecret::new(b"  short \n").err(), Some(SecretTooShort(5)));
    assert_eq!(format!("{secret:?}"), "MeshSecret(..)");
}
