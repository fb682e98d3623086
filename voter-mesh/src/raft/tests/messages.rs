//! What peers may say, true or not: nothing of it ends the process, and no term or commit ever falls.
//!
//! Where raft 0.7.0 ends the process over an input, and what keeps that input from it:
//!
//! | in the crate | guarded by |
//! |---|---|
//! | `commit_to` past the last index: a heartbeat's commit | clamped in `step_message` |
//! | `commit_to`, `unstable.slice`: an append of term 0 "matches" where nothing is | `accept` refuses run 0 and term 0 |
//! | `maybe_append`: conflict with what is committed | `accept`: `FatalError::Diverged` instead |
//! | `next_idx` overflows: a reply from beyond the log, a hint at the end of numbers | `BeyondTheLog`; the hint is clamped |
//! | term 0 passes every term check as a local message | `check_term`: `TermZero` |
//! | `term + 1` overflows in a campaign | `check_term`: no term above `NUMBER_MAX` |
//! | `stepped empty MsgProp`, `entries[0]` of a read | only `append` and `drive_reads` propose and read |
//! | a message without a term, or with one where none belongs | nothing is forwarded; who has no log gives no vote |
//! | `become_leader`: `last_index == persisted`; `ready`: records while becoming leader | `may_campaign`; vote replies wait for the disk |
//! | `become_leader`, `maybe_commit`: no progress of its own (newcomer, standby, removed leader) | `may_campaign`; `configured` |
//! | `hup`: runs between applied and a snapshot are compacted | `may_campaign` |
//! | `restore`, `Raft::new`: a configuration that contradicts itself | `membership::is_sound` |
//! | `restore` of a snapshot at the commit index with another term | `handle_snapshot`: `Diverged` |
//! | `become_candidate` as leader | `hup` returns first |
//! | `applied_to` out of range | `handle_applied` clamps and never goes back |
//! | `load_state`: commit out of range | `Voter::new` clamps |
//! | `set_randomized_election_timeout` out of range | `randomise` draws inside, `Timing::check` orders the bounds |
//! | `stable_entries`, `stable_snap`: another end than the ready's | one `Ready` at a time, in `take_ready` |
//! | `slice` unavailable: runs above applied not in memory | `Store::evict` spares them; `Voter::new` demands them |
//! | `on_entries_fetched` of a context that cannot wait | only those that can are kept |
//! | `inflights`: added when full; progress updated in snapshot state | the crate pauses first |
//! | `snapshot`: an error it does not know, or index 0 | `Store::snapshot` gives one error; tails begin at run 1 |
//! | `commit_apply` in auto-leave; an empty change nobody sealed | changes are explicit; two at once are joint |
//! | `load_entries`, read-only queue without its status | both kept by the crate alone |

use super::super::*;
use super::cluster::{Cluster, formed, id};
use crate::entry::EntryKind;
use crate::ids::LogIndex;
use crate::mesh::message::{ReadNonce, RejectHint};
use crate::testing::{IDENTITY, Leader, internal, open};

/// A source of true, nearly true and absurd words.
struct Liar<'a> {
    world: &'a mut Cluster,
    status: VoterStatus,
    tail: Tail,
}

impl Liar<'_> {
    fn pick(&mut self, below: u64) -> u64 {
        self.world.random(below)
    }

    fn near(&mut self, truth: u64) -> u64 {
        match self.pick(14) {
            0 => 0,
            1 => 1,
            2 => u64::MAX,
            3 => u64::MAX - 1,
            4 => u64::MAX / 2,
            5 => truth.saturating_add(1_001),
            6 => truth.saturating_sub(1),
            7 | 8 => truth.saturating_add(1),
            9 => self.pick(30),
            _ => truth,
        }
    }

    fn term(&mut self) -> Term {
        Term(self.near(self.status.term.0))
    }

    fn run(&mut self) -> RunIndex {
        let truth = [self.status.last.0, self.status.commit.0][self.pick(2) as usize];
        RunIndex(self.near(truth))
    }

    fn runs(&mut self) -> Vec<Run> {
        let mut tail = self.tail;
        if self.pick(3) == 0 {
            (tail.run, tail.term) = (self.run(), self.term());
        }
        if self.pick(4) == 0 {
            tail.last = LogIndex(self.pick(u64::MAX / 4));
        }
        let (count, term) = (self.pick(4), self.term());
        let mut leader = Leader { tail, term, clock: self.world.now.unix_ms };
        let config = ConfigPayload { base: self.run(), configuration: formed(self.pick(6) as u16) };
        let config = internal(EntryKind::Config, Default::default(), Default::default(), &config.encode());
        (0..count).map(|n| leader.seal(&[if n == 2 { config.clone() } else { open(n as u8) }])).collect()
    }

    fn message(&mut self) -> Message {
        let (term, run, commit) = (self.term(), self.run(), self.run());
        let chance = self.pick(2) == 0;
        match self.pick(16) {
            0..=2 => {
                let runs = self.runs();
                let (mut previous, mut previous_term) = (self.tail.run, self.tail.term);
                if self.pick(3) == 0 {
                    (previous, previous_term) = (run, self.term());
                }
                Message::Append { term, previous, previous_term, commit, runs }
            }
            3 | 4 => {
                let hint = RejectHint { run: self.run(), term: self.term() };
                Message::AppendReply { term, run, reject: chance.then_some(hint), commit }
            }
            15 => Message::Commit { term, previous: run, previous_term: self.term(), commit },
            5 => Message::Heartbeat { term, commit, round: self.near(1) },
            6 => Message::HeartbeatReply { term, commit, round: self.near(1) },
            7 | 8 => {
                let (last, last_term, commit_term) = (self.run(), self.term(), self.term());
                let (pre, transfer, priority) = (chance, self.pick(2) == 0, self.near(0) as i32);
                Message::VoteRequest { term, pre, last, last_term, commit, commit_term, priority, transfer }
            }
            9 | 10 => {
                let (granted, commit_term) = (self.pick(3) > 0, self.term());
                Message::VoteReply { term, pre: chance, granted, commit, commit_term }
            }
            11 => Message::TimeoutNow { term },
            12 => Message::Forward { batch: BatchId(self.near(1)), entries: self.entries() },
            13 => Message::Taken { batch: BatchId(self.near(1)), term, first: LogIndex(self.near(self.tail.last.0)) },
            _ => {
                let nonce = ReadNonce { server: id(1), incarnation: Incarnation(1), counter: self.near(1) };
                if chance { Message::ReadIndex { nonce } } else { Message::ReadAnswer { nonce, answer: Ok(run) } }
            }
        }
    }

    fn entries(&mut self) -> bytes::Bytes {
        match self.pick(4) {
            0 => bytes::Bytes::new(),
            1 => vec![self.pick(256) as u8; self.pick(200) as usize].into(),
            2 => internal(EntryKind::Noop, Default::default(), Default::default(), b""),
            _ => open(self.pick(256) as u8),
        }
    }

    fn snapshot(&mut self) -> SnapshotMeta {
        let tail = Tail { run: self.run(), term: self.term(), last: LogIndex(self.near(self.tail.last.0)), ..self.tail };
        let mut configuration = formed(self.pick(5) as u16);
        if self.pick(4) == 0 {
            configuration.outgoing = vec![id(self.pick(5) as u16), id(self.pick(5) as u16)];
        }
        SnapshotMeta {
            tail,
            identity: IDENTITY,
            configuration,
            configuration_run: self.run(),
            machine_name: "tail".into(),
            machine_version: 1,
            state_hash: [0; 32],
            sessions_hash: [0; 32],
        }
    }
}

fn endure(seed: u64) {
    println!("seed {seed}");
    let mut world = Cluster::new([1, 3, 5][seed as usize % 3], seed);
    let leader = world.lead();
    world.propose_all(leader, 0..3);
    world.converge();
    let who = match seed % 4 {
        0 => leader,
        1 => {
            world.newcomer(id(9));
            world.run_ms(20);
            id(9)
        }
        _ => id(1),
    };
    if seed.is_multiple_of(7) {
        world.isolate(who);
        world.run_ms(seed % 3_000);
    }
    let mut voter = world.servers.get_mut(&who).unwrap().voter.take().unwrap();
    let mut now = world.now;
    let peers: Vec<RaftId> = (1..=6).map(id).filter(|peer| *peer != who).collect();
    peers.iter().for_each(|peer| voter.handle_connected(Peer { id: *peer, incarnation: Incarnation(1) }, now));
    let (mut seen, mut number, mut written) = ((Term::ZERO, RunIndex::ZERO), 0, 0);
    for _ in 0..120 {
        let status = voter.status();
        let tail = voter.raw.store().tail;
        let mut liar = Liar { world: &mut world, status, tail };
        let peer = peers[liar.pick(peers.len() as u64) as usize];
        match liar.pick(20) {
            0 => voter.handle_disconnected(peer, if liar.pick(2) == 0 { Disconnect::Torn } else { Disconnect::Closed }, now),
            1 => voter.handle_connected(Peer { id: peer, incarnation: Incarnation(liar.pick(3)) }, now),
            2 => drop(voter.handle_snapshot(peer, liar.term(), liar.snapshot(), now)),
            3 => voter.handle_snapshot_sent(peer, liar.pick(2) == 0, now),
            4 => voter.handle_applied(liar.run(), now),
            5 => voter.handle_fetched(liar.runs(), now),
            6 => drop(voter.handle_propose(open(1), now)),
            7 => drop(voter.handle_read(ReadId(number), now)),
            8 => drop(voter.transfer_away(now)),
            9 => drop(voter.handle_admin(AdminRequest::RemoveSeat { seat: peer.seat() }, now)),
            10 => voter.handle_written(Ok(Written { number: written }), now),
            11 | 12 => {
                now = now.plus_ms(1 + liar.pick(80));
                voter.handle_timeout(now);
            }
            _ => {
                let message = liar.message();
                // Refused or taken: either may be right.
                let _ = voter.handle_message(peer, message, now);
            }
        }
        number += 1;
        if world.random(3) > 0 {
            while voter.poll_transmit().is_some() {}
            while let Some(write) = voter.poll_write() {
                written = write.number;
            }
            while let Some(event) = voter.poll_event() {
                if let Event::Fatal(_) = event {
                    return;
                }
            }
        }
        let status = voter.status();
        assert!(status.term >= seen.0 && status.commit >= seen.1 && status.commit <= status.last, "{seen:?} then {status:?}");
        seen = (status.term, status.commit);
    }
}

#[test]
fn no_word_of_a_peer_ends_the_process_or_turns_back_time() {
    (0..600).for_each(endure);
}

#[test]
fn strangers_are_not_heard() {
    let mut cluster = Cluster::new(3, 1);
    let leader = cluster.lead();
    let (now, stranger) = (cluster.now, id(7));
    let heard = cluster.voter(leader).handle_message(stranger, Message::TimeoutNow { term: Term(2) }, now);
    assert_eq!(heard, Err(MessageError::Stranger(stranger)));
    let own = cluster.voter(leader).handle_message(leader, Message::TimeoutNow { term: Term(2) }, now);
    assert_eq!(own, Err(MessageError::Stranger(leader)));
}
