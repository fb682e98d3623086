//! Every type that servers send each other or anyone writes, through its bytes and back. (Those of the client protocol: beside its
//! codec, in `relay`.)

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use cluster_client::journal::record::{Record, SessionRecord};
use cluster_server::disk::{DataDir, NodeRecord, VerdictStore};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use tests::sim::disk::SimDisk;
use voter_mesh::configuration::{ConfigPayload, Configuration, Member, Role, SeatRecord};
use voter_mesh::entry::{Entries, EntryKind, EntrySpec, entry};
use voter_mesh::ids::*;
use voter_mesh::log::{Mark, NoRuns, SegmentHeader, SegmentKind};
use voter_mesh::machine::kv::{KvCommand, KvExpected};
use voter_mesh::machine::{from_cbor, to_cbor};
use voter_mesh::mesh::bulk::{BulkFrame, SnapshotOffer, TransferId};
use voter_mesh::mesh::codec::{self, FRAME_BYTES_MAX, MeshMessage};
use voter_mesh::mesh::forming::{FormMessage, FormState, Offer};
use voter_mesh::mesh::handshake::{Accepting, Dialling, Hello, LinkKind, PeerHello};
use voter_mesh::mesh::message::{AdminFailure, AdminRequest, BatchId, ForwardRefusal, Message, ReadNonce, ReadRefusal, RejectHint};
use voter_mesh::run::{Run, Tail, Verdicts};
use voter_mesh::session::{AttachPayload, EndPayload, EndReason};
use voter_mesh::snapshot::{SnapshotHashes, SnapshotMeta};
use voter_mesh::verdicts::VerdictBook;

fn bytes(most: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..most).prop_map(Bytes::from)
}

fn raft_id() -> impl Strategy<Value = RaftId> {
    (any::<u16>(), any::<u16>()).prop_map(|(seat, life)| RaftId::new(Seat(seat), life))
}

fn identity() -> impl Strategy<Value = Identity> {
    (any::<[u8; 16]>(), any::<u32>(), any::<u16>()).prop_map(|(cluster, epoch, room)| Identity {
        cluster: ClusterId(cluster),
        epoch: Epoch(epoch),
        room: RoomId(room),
    })
}

fn tail() -> impl Strategy<Value = Tail> {
    (any::<u64>(), any::<u64>(), any::<u64>(), any::<u32>(), any::<u64>()).prop_map(|(run, term, last, chain, time)| Tail {
        run: RunIndex(run),
        term: Term(term),
        last: LogIndex(last),
        chain: Chain(chain),
        time: TimeMs(time),
    })
}

fn role() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::Voter), Just(Role::Standby)]
}

fn member() -> impl Strategy<Value = Member> {
    (raft_id(), any::<[u8; 16]>(), role()).prop_map(|(id, directory, role)| Member { id, directory: DirectoryId(directory), role })
}

fn configuration() -> impl Strategy<Value = Configuration> {
    let record = (".{0,20}", any::<i32>(), ".{0,8}", any::<u16>(), proptest::option::of(member()), proptest::option::of(member()))
        .prop_map(|(address, priority, failure_domain, highest_life, member, incoming)| SeatRecord {
            address,
            priority,
            failure_domain,
            highest_life,
            member,
            incoming,
        });
    (
        btree_map(any::<u16>().prop_map(Seat), record, 0..4),
        vec(raft_id(), 0..4),
        btree_map(any::<u16>().prop_map(Seat), any::<u16>(), 0..3),
    )
        .prop_map(|(seats, outgoing, retired)| Configuration { seats, outgoing, retired })
}

fn machine() -> impl Strategy<Value = (String, u32)> {
    ("[a-z]{0,12}", any::<u32>())
}

fn spec() -> impl Strategy<Value = EntrySpec> {
    let kinds = [
        EntryKind::Command,
        EntryKind::SessionOpen,
        EntryKind::SessionAttach,
        EntryKind::SessionEnd,
        EntryKind::Config,
        EntryKind::Noop,
    ];
    (0..kinds.len(), any::<u16>(), any::<[u64; 4]>()).prop_map(move |(kind, room, [session, opening, request, floor])| EntrySpec {
        kind: kinds[kind],
        room: RoomId(room),
        session: SessionId(session),
        opening: Opening(opening),
        request: RequestId(request),
        floor: RequestId(floor),
    })
}

fn runs() -> impl Strategy<Value = Vec<Run>> {
    (identity(), vec(vec((spec(), bytes(60)), 1..4), 0..4), 1..u64::MAX / 2).prop_map(|(identity, batches, term)| {
        let mut tail = Tail::zero(&identity);
        let seal = |batch: Vec<(EntrySpec, Bytes)>| {
            // A configuration has a run of its own.
            let alone = |spec: &EntrySpec| batch.len() == 1 || spec.kind != EntryKind::Config;
            let entries: Vec<Bytes> =
                batch.iter().filter(|(spec, _)| alone(spec)).map(|(spec, payload)| entry(spec, payload).unwrap()).collect();
            if entries.is_empty() {
                return None;
            }
            let parts: Vec<&[u8]> = entries.iter().map(AsRef::as_ref).collect();
            let run = Run::seal(&tail, Term(term), TimeMs(5), identity.epoch, identity.room, &parts).unwrap();
            tail = run.header().tail();
            Some(run)
        };
        batches.into_iter().filter_map(seal).collect()
    })
}

fn admin_request() -> impl Strategy<Value = AdminRequest> {
    let seat = || any::<u16>().prop_map(Seat);
    prop_oneof![
        (seat(), ".{0,20}", any::<i32>(), ".{0,8}").prop_map(|(seat, address, priority, failure_domain)| AdminRequest::AddSeat {
            seat,
            address,
            priority,
            failure_domain
        }),
        seat().prop_map(|seat| AdminRequest::Promote { seat }),
        seat().prop_map(|seat| AdminRequest::RemoveSeat { seat }),
        seat().prop_map(|seat| AdminRequest::Transfer { seat }),
        (seat(), any::<[u8; 16]>()).prop_map(|(seat, directory)| AdminRequest::Join { seat, directory: DirectoryId(directory) }),
    ]
}

fn message() -> BoxedStrategy<Message> {
    let numbers = || any::<[u64; 5]>();
    let nonce = || {
        (raft_id(), any::<[u64; 2]>()).prop_map(|(server, [incarnation, counter])| ReadNonce {
            server,
            incarnation: Incarnation(incarnation),
            counter,
        })
    };
    let forward_refusals = [
        ForwardRefusal::NotLeader,
        ForwardRefusal::Overloaded,
        ForwardRefusal::Transferring,
        ForwardRefusal::Malformed,
        ForwardRefusal::Recovering,
        ForwardRefusal::DiskFull,
    ];
    let read_refusals = [ReadRefusal::NotLeader, ReadRefusal::NotReady, ReadRefusal::Recovering];
    let sessions = || vec(any::<u64>().prop_map(SessionId), 0..5);
    prop_oneof![
        (numbers(), runs()).prop_map(|([term, previous, previous_term, commit, _], runs)| Message::Append {
            term: Term(term),
            previous: RunIndex(previous),
            previous_term: Term(previous_term),
            commit: RunIndex(commit),
            runs,
        }),
        numbers().prop_map(|[term, previous, previous_term, commit, _]| Message::Commit {
            term: Term(term),
            previous: RunIndex(previous),
            previous_term: Term(previous_term),
            commit: RunIndex(commit),
        }),
        // A hint of zeros is none: no log has a run 0 of term 0.
        (numbers(), any::<bool>()).prop_map(|([term, run, hint, hint_term, commit], rejects)| Message::AppendReply {
            term: Term(term),
            run: RunIndex(run),
            reject: rejects.then_some(RejectHint { run: RunIndex(hint | 1), term: Term(hint_term) }),
            commit: RunIndex(commit),
        }),
        numbers().prop_map(|[term, commit, round, ..]| Message::Heartbeat { term: Term(term), commit: RunIndex(commit), round }),
        numbers().prop_map(|[term, commit, round, ..]| Message::HeartbeatReply {
            term: Term(term),
            commit: RunIndex(commit),
            round
        }),
        (numbers(), any::<i32>(), any::<bool>(), any::<bool>()).prop_map(
            |([term, last, last_term, commit, commit_term], priority, pre, transfer)| Message::VoteRequest {
                term: Term(term),
                pre,
                last: RunIndex(last),
                last_term: Term(last_term),
                commit: RunIndex(commit),
                commit_term: Term(commit_term),
                priority,
                transfer,
            }
        ),
        (numbers(), any::<bool>(), any::<bool>()).prop_map(|([term, commit, commit_term, ..], pre, granted)| Message::VoteReply {
            term: Term(term),
            pre,
            granted,
            commit: RunIndex(commit),
            commit_term: Term(commit_term),
        }),
        any::<u64>().prop_map(|term| Message::TimeoutNow { term: Term(term) }),
        (any::<u64>(), bytes(200)).prop_map(|(batch, entries)| Message::Forward { batch: BatchId(batch), entries }),
        numbers().prop_map(|[batch, term, first, ..]| Message::Taken {
            batch: BatchId(batch),
            term: Term(term),
            first: LogIndex(first)
        }),
        (any::<u64>(), 0..forward_refusals.len(), proptest::option::of(raft_id())).prop_map(move |(batch, why, leader)| {
            Message::Refused { batch: BatchId(batch), why: forward_refusals[why], leader: leader.and_then(RaftId::some) }
        }),
        nonce().prop_map(|nonce| Message::ReadIndex { nonce }),
        (nonce(), any::<u64>()).prop_map(|(nonce, run)| Message::ReadAnswer { nonce, answer: Ok(RunIndex(run)) }),
        (nonce(), 0..read_refusals.len())
            .prop_map(move |(nonce, why)| Message::ReadAnswer { nonce, answer: Err(read_refusals[why]) }),
        (sessions(), sessions()).prop_map(|(attached, detached)| Message::SessionActivity { attached, detached }),
        (any::<u64>(), any::<[u8; 32]>(), any::<[u8; 32]>())
            .prop_map(|(run, state, sessions)| Message::SnapshotHashes(SnapshotHashes { run: RunIndex(run), state, sessions })),
        (any::<u64>(), admin_request()).prop_map(|(nonce, request)| Message::Admin { nonce, request }),
        (
            any::<u64>(),
            prop_oneof![
                Just(Ok(())),
                Just(Err(AdminFailure::Recovering)),
                ".{0,30}".prop_map(|why| Err(AdminFailure::Refused(why)))
            ]
        )
            .prop_map(|(nonce, result)| Message::AdminReply { nonce, result }),
    ]
    .boxed()
}

fn form_message() -> impl Strategy<Value = FormMessage> {
    prop_oneof![
        (identity(), configuration(), machine()).prop_map(|(identity, configuration, machine)| FormMessage::Offer(Offer {
            identity,
            configuration,
            machine
        })),
        any::<[u8; 16]>().prop_map(|cluster| FormMessage::Confirm(ClusterId(cluster))),
        identity().prop_map(FormMessage::Release),
        (raft_id(), identity(), configuration()).prop_map(|(id, identity, configuration)| FormMessage::Welcome {
            id,
            identity,
            configuration
        }),
    ]
}

fn snapshot_meta() -> impl Strategy<Value = SnapshotMeta> {
    (tail(), identity(), configuration(), any::<u64>(), machine(), any::<[u8; 32]>(), any::<[u8; 32]>()).prop_map(
        |(tail, identity, configuration, configuration_run, (machine_name, machine_version), state_hash, sessions_hash)| {
            SnapshotMeta {
                tail,
                identity,
                configuration,
                configuration_run: RunIndex(configuration_run),
                machine_name,
                machine_version,
                state_hash,
                sessions_hash,
            }
        },
    )
}

fn bulk_frame() -> impl Strategy<Value = BulkFrame> {
    let id = || any::<u32>().prop_map(TransferId);
    prop_oneof![
        (id(), any::<u64>(), any::<u64>(), any::<[u8; 32]>(), snapshot_meta())
            .prop_map(|(id, term, total, hash, meta)| BulkFrame::Begin(id, SnapshotOffer { term: Term(term), total, hash, meta })),
        (id(), any::<u64>(), any::<u64>()).prop_map(|(transfer, credit, offset)| BulkFrame::Accept { transfer, credit, offset }),
        // A piece of nothing is refused: it would not bring a transfer any further.
        (id(), any::<u64>(), vec(any::<u8>(), 1..200)).prop_map(|(id, offset, bytes)| BulkFrame::Chunk(id, offset, bytes.into())),
        (id(), any::<u64>()).prop_map(|(id, credit)| BulkFrame::Credit(id, credit)),
        id().prop_map(BulkFrame::End),
        id().prop_map(BulkFrame::Done),
        (id(), ".{0,60}").prop_map(|(id, reason)| BulkFrame::Refuse(id, reason)),
        id().prop_map(BulkFrame::Abort),
        (id(), any::<u64>(), any::<u64>()).prop_map(|(id, first, last)| BulkFrame::FetchRuns(id, RunIndex(first), RunIndex(last))),
        (id(), runs()).prop_map(|(id, runs)| BulkFrame::Runs(id, runs)),
        (id(), any::<u64>()).prop_map(|(id, first)| BulkFrame::NoRuns(id, NoRuns::Trimmed { first: RunIndex(first) })),
        (id(), any::<bool>()).prop_map(|(id, yet)| BulkFrame::NoRuns(id, if yet { NoRuns::Absent } else { NoRuns::NotYet })),
    ]
}

fn hello() -> impl Strategy<Value = Hello> {
    let peer = (
        (any::<u16>(), proptest::option::of(1..=u16::MAX), any::<[u8; 16]>(), any::<u64>(), proptest::option::of(identity())),
        (machine(), any::<[u64; 3]>(), any::<bool>(), vec(".{0,20}", 0..3)),
    )
        .prop_map(|((seat, life, directory, incarnation, identity), (machine, [first, term, last], suspect, endpoints))| {
            PeerHello {
                seat: Seat(seat),
                id: life.map(|life| RaftId::new(Seat(seat), life)),
                directory: DirectoryId(directory),
                incarnation: Incarnation(incarnation),
                identity,
                machine,
                first: RunIndex(first),
                last: (Term(term), RunIndex(last)),
                suspect,
                endpoints,
            }
        });
    (any::<bool>(), any::<[u8; 32]>(), any::<u64>(), any::<u16>(), proptest::option::of(any::<u64>()), peer).prop_map(
        |(bulk, nonce, dial, to, to_incarnation, from)| Hello {
            kind: if bulk { LinkKind::Bulk } else { LinkKind::Consensus },
            nonce,
            dial,
            to: Seat(to),
            to_incarnation: to_incarnation.map(Incarnation),
            from,
        },
    )
}

fn mark() -> impl Strategy<Value = Mark> {
    (any::<[u64; 6]>(), raft_id(), tail(), proptest::option::of(tail()), any::<bool>()).prop_map(
        |([sequence, segment, term, commit, synced_through, _], vote, last, must_reach, vote_lost)| Mark {
            sequence,
            segment,
            term: Term(term),
            vote,
            commit: RunIndex(commit),
            last,
            synced_through: RunIndex(synced_through),
            must_reach,
            vote_lost,
        },
    )
}

fn record() -> impl Strategy<Value = Record> {
    let id = || any::<u64>().prop_map(RequestId);
    prop_oneof![
        any::<[u8; 32]>().prop_map(Record::Secret),
        (any::<[u8; 16]>(), any::<u32>(), any::<[u64; 2]>()).prop_map(|(cluster, epoch, [session, opening])| Record::Session(
            SessionRecord {
                cluster: ClusterId(cluster),
                epoch: Epoch(epoch),
                session: SessionId(session),
                opening: Opening(opening)
            }
        )),
        any::<[u8; 16]>().prop_map(Record::Nonce),
        id().prop_map(Record::IdEnd),
        (id(), bytes(60)).prop_map(|(id, payload)| Record::Request(id, payload)),
        id().prop_map(Record::Answered),
        id().prop_map(Record::Reserved),
        Just(Record::Ended),
    ]
}

fn kv_command() -> impl Strategy<Value = KvCommand> {
    let some = || vec(any::<u8>(), 0..40);
    let expected = prop_oneof![Just(KvExpected::Absent), some().prop_map(KvExpected::Value)];
    prop_oneof![
        (some(), some()).prop_map(|(key, value)| KvCommand::Put { key, value }),
        some().prop_map(|key| KvCommand::Delete { key }),
        (some(), expected, some()).prop_map(|(key, expected, value)| KvCommand::CompareAndSet { key, expected, value }),
    ]
}

/// What a connection takes off its stream.
fn received(pieces: &[Bytes]) -> Bytes {
    let mut stream = BytesMut::from(&pieces.concat()[..]);
    let frame = codec::split_frame(&mut stream, FRAME_BYTES_MAX).unwrap().unwrap();
    assert!(stream.is_empty());
    frame
}

fn comes_back(message: &MeshMessage) {
    let mut pieces = Vec::new();
    codec::encode(message, &mut pieces).unwrap();
    assert_eq!(codec::decode(received(&pieces)).as_ref(), Ok(message));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn messages_of_consensus(message in message()) {
        comes_back(&MeshMessage::Raft(message));
    }

    #[test]
    fn messages_of_forming(message in form_message()) {
        comes_back(&MeshMessage::Form(message));
    }

    #[test]
    fn bulk_frames(frame in bulk_frame()) {
        let mut pieces = Vec::new();
        frame.encode(&mut pieces).unwrap();
        prop_assert_eq!(BulkFrame::decode(received(&pieces)), Ok(frame));
    }

    /// Both hellos, as the other side reads them.
    #[test]
    fn handshakes(mut dialler in hello(), acceptor in hello()) {
        dialler.to = acceptor.from.seat;
        let (dialling, said) = Dialling::new(dialler.clone(), None).unwrap();
        let (accepted, answered) = Accepting::new(acceptor.from.clone(), acceptor.nonce, None).handle_hello(&received(&[said])).unwrap();
        let (_, proof) = dialling.handle_hello(&received(&[answered])).unwrap();
        let proven = accepted.handle_proof(&received(&[proof])).unwrap();
        prop_assert_eq!(proven.peer(), &dialler);
    }

    #[test]
    fn entries_and_runs(runs in runs()) {
        for run in runs {
            let again = Run::split_from(&mut run.bytes().clone()).unwrap();
            prop_assert_eq!((again.header(), again.bytes()), (run.header(), run.bytes()));
            for (_, one) in run.entries() {
                let read = Entries::checked(one.bytes).next().unwrap().unwrap();
                prop_assert_eq!((read.header, read.payload), (one.header, one.payload));
            }
        }
    }

    #[test]
    fn segment_headers(identity in identity(), id in raft_id(), before in tail(), sequence: u64, restarts: bool) {
        let kind = if restarts { SegmentKind::Restarts } else { SegmentKind::Continues };
        let header = SegmentHeader { kind, identity, id, sequence, before };
        prop_assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn marks(mark in mark()) {
        prop_assert_eq!(Mark::decode(&mark.encode(), mark.segment, mark.slot()), Some(mark));
        prop_assert_eq!(Mark::decode(&mark.encode(), mark.segment, 1 - mark.slot()), None);
    }

    #[test]
    fn node_records(directory: [u8; 16], seat: u16, id in proptest::option::of(raft_id()), identity in proptest::option::of(identity()),
        configuration in configuration(), machine in machine(), state in 0..4_usize) {
        let state = [FormState::Empty, FormState::Offered, FormState::Newcomer, FormState::Formed][state];
        let node = NodeRecord { directory: DirectoryId(directory), seat: Seat(seat), id, identity, configuration, machine, state };
        let disk = SimDisk::new();
        let open = || DataDir::open_on(Arc::new(disk.clone()), "/d", DirectoryId([0; 16])).unwrap();
        open().store_node(&node).unwrap();
        let dir = open();
        prop_assert_eq!(dir.node(), Some(&node));
    }

    #[test]
    fn verdict_files(bits in vec(any::<bool>(), 1..300), identity in identity()) {
        let mut verdicts = Verdicts::clear(bits.len() as u32);
        bits.iter().enumerate().filter(|(_, bit)| **bit).for_each(|(offset, _)| verdicts.set(offset));
        let mut book = VerdictBook::new(LogIndex(7), 1 << 16);
        book.push(LogIndex(8), bits.len() as u32, &verdicts);
        let (after, through) = (book.after(), book.through());
        let disk = SimDisk::new();
        let dir = DataDir::open_on(Arc::new(disk), "/d", DirectoryId([0; 16])).unwrap();
        let (store, _) = VerdictStore::open(&dir, identity, through, 1 << 16).unwrap();
        store.write(after, through, &book.copy(after, through).unwrap()).unwrap();
        let (_, again) = VerdictStore::open(&dir, identity, through, 1 << 16).unwrap();
        prop_assert_eq!(again.get(LogIndex(8), bits.len() as u32), Some(verdicts));
    }

    #[test]
    fn snapshot_metas(meta in snapshot_meta()) {
        prop_assert_eq!(from_cbor::<SnapshotMeta>(&to_cbor(&meta).unwrap()), Ok(meta));
    }

    #[test]
    fn journal_records(record in record()) {
        prop_assert_eq!(Record::decode(&record.encode()), Some(record));
    }

    #[test]
    fn configurations(base: u64, configuration in configuration()) {
        let payload = ConfigPayload { base: RunIndex(base), configuration };
        prop_assert_eq!(ConfigPayload::decode(&payload.encode()), Ok(payload));
    }

    #[test]
    fn session_payloads(nonce: [u8; 16], previous: u64, why in 0..3_usize) {
        let attach = AttachPayload { nonce, previous: Opening(previous) };
        prop_assert_eq!(AttachPayload::decode(&attach.encode()), Ok(attach));
        let why = [EndReason::Closed, EndReason::Expired, EndReason::WindowBroken][why];
        let end = EndPayload { why, last_activity: LogIndex(previous) };
        prop_assert_eq!(EndPayload::decode(&end.encode()), Ok(end));
    }

    #[test]
    fn kv_commands(command in kv_command()) {
        prop_assert_eq!(from_cbor::<KvCommand>(&to_cbor(&command).unwrap()), Ok(command));
    }

    /// A frame in pieces of any size is the same frame.
    #[test]
    fn streams(messages in vec(message(), 1..4), cuts in vec(1..40_usize, 1..20)) {
        let mut whole = Vec::new();
        for message in &messages {
            codec::encode(&MeshMessage::Raft(message.clone()), &mut whole).unwrap();
        }
        let mut rest = Bytes::from(whole.concat());
        let (mut stream, mut got, mut cuts) = (BytesMut::new(), Vec::new(), cuts.into_iter().cycle());
        while rest.has_remaining() {
            stream.extend_from_slice(&rest.split_to(cuts.next().unwrap_or(1).min(rest.len())));
            while let Some(frame) = codec::split_frame(&mut stream, FRAME_BYTES_MAX).unwrap() {
                got.push(codec::decode(frame).unwrap());
            }
        }
        prop_assert_eq!(got, messages.into_iter().map(MeshMessage::Raft).collect::<Vec<_>>());
    }
}
