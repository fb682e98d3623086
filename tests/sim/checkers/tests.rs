//! Each checker passes a good record, and catches every bad one that it is there for.

use cluster_client::{Consistency, Ticket};
use voter_mesh::ids::{Chain, LogIndex, Opening, RequestId, RunIndex, SessionId, Term};
use voter_mesh::machine::kv::{KvCommand, KvReply};
use voter_mesh::machine::to_cbor;
use voter_mesh::mesh::message::Message;
use voter_mesh::outcome::{Outcome, Reply};

use super::{CheckerOptions, Checkers};
use crate::sim::record::{CallId, ClientId, End, LearnerId, Operation, Phase, Recorder, Report, Returned, What};

mod agreement;
mod models;
mod story;

use story::{Story, delete, id, put, read, seat};

fn judged(story: Story) -> Report {
    let recorder =
        Recorder::new(vec![Box::new(Checkers::new(CheckerOptions { second_look_every: 1, ..CheckerOptions::default() }))]);
    story.events.into_iter().for_each(|what| recorder.record(what));
    recorder.finish()
}

#[tokio::test(start_paused = true)]
async fn a_good_record_passes() {
    let report = judged(Story::good());
    assert_eq!(report.violations, []);
    assert_eq!((report.operations, report.histories, report.counts["histories_judged_twice"]), (9, 2, 2));
}

/// The record once it is spoilt; this checker must say so.
fn caught(checker: &str, spoil: impl FnOnce(&mut Story)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut story = Story::good();
        spoil(&mut story);
        let report = judged(story);
        assert!(report.violations.iter().any(|violation| violation.checker == checker), "{checker}: {:#?}", report.violations);
    });
}

macro_rules! caught {
    ($($name:ident: $checker:literal, $spoil:expr;)*) => {
        $(#[test]
        fn $name() {
            caught($checker, $spoil);
        })*
    };
}

fn heartbeat(term: u64) -> Message {
    Message::Heartbeat { term: Term(term), commit: RunIndex(1), round: 0 }
}

fn vote(term: u64) -> Message {
    Message::VoteReply { term: Term(term), pre: false, granted: true, commit: RunIndex(1), commit_term: Term(1) }
}

caught! {
    two_leaders_of_a_term: "election safety", |story| story.mesh(2, 3, heartbeat(2));
    a_leader_by_status_and_another_by_heartbeat: "election safety", |story| {
        story.mesh(2, 3, heartbeat(9));
        story.spoil_status(1, |status| status.term = Term(9));
    };
    two_votes_in_a_term: "election safety", |story| {
        story.mesh(3, 1, vote(5));
        story.mesh(3, 2, vote(5));
    };

    one_run_and_term_with_two_contents: "log matching", |story| {
        let other = story.fork(4, 2, &[story.command(50, &put("k", "other"))]);
        story.append(1, 3, 2, &[other]);
    };
    one_run_behind_two_terms: "log matching", |story| {
        let run = story.run(5);
        story.push(What::Mesh {
            from: id(1),
            to: id(3),
            message: Message::Append {
                term: Term(2),
                previous: RunIndex(4),
                previous_term: Term(1),
                commit: RunIndex(2),
                runs: vec![run],
            },
        });
    };

    a_later_leader_without_what_is_committed: "leader completeness", |story| {
        let other = story.fork(4, 7, &[story.command(50, &put("k", "other"))]);
        story.append(2, 3, 7, &[other]);
    };
    a_later_leader_that_says_that_it_holds_something_else: "leader completeness", |story| {
        let message = Message::Commit { term: Term(8), previous: RunIndex(5), previous_term: Term(7), commit: RunIndex(1) };
        story.mesh(3, 1, message);
    };

    two_servers_that_commit_different_runs: "state-machine safety", |story| {
        let other = story.fork(4, 2, &[story.command(50, &put("k", "other"))]);
        story.feed(3, &other);
    };
    a_feed_that_does_not_continue: "state-machine safety", |story| {
        let next = story.last_run().next().0;
        let other = story.fork(next - 1, 3, &[story.command(50, &put("k", "other"))]);
        story.feed(3, &story.next_of(&other));
    };
    a_committed_run_that_nobody_saw: "state-machine safety", |story| {
        let run = story.seal(3, &[story.command(60, &put("k", "unseen"))]);
        let next = story.next_of(&run);
        story.feed(1, &next);
    };

    an_acknowledged_command_that_is_not_there: "durability", |story| {
        let call = story.call(1, Operation::Propose { ticket: None, command: put("k", "lost") });
        story.returned(call, Returned::Applied { index: LogIndex(90), term: Term(3), repeat: false, reply: None });
    };
    an_acknowledged_command_in_another_term: "durability", |story| {
        story.spoil_applied(|_, term, _| *term = Term(1));
    };
    a_server_that_ends_without_it: "durability", |story| story.spoil_status(3, |status| status.applied = LogIndex(1));
    disks_without_it: "durability", |story| {
        story.spoil_disk(1, |disk| disk.runs.truncate(2));
        story.spoil_disk(2, |disk| disk.runs.truncate(1));
    };

    a_command_that_takes_effect_under_two_ids: "exactly once", |story| {
        let run = story.seal(3, &[story.command(70, &put("k", "v1"))]);
        story.commit(&run);
    };
    a_command_that_nobody_called_for: "exactly once", |story| {
        let run = story.seal(3, &[story.command(70, &put("k", "from nowhere"))]);
        story.commit(&run);
    };
    a_command_that_was_told_to_have_no_effect: "exactly once", |story| {
        let call = story.call(1, Operation::Propose { ticket: None, command: put("k", "denied") });
        story.returned(call, Returned::NoEffect("not sent"));
        let run = story.seal(3, &[story.command(70, &put("k", "denied"))]);
        story.commit(&run);
    };

    a_retry_that_is_answered_otherwise: "outcomes", |story| {
        let (index, term) = story.place("v1");
        let outcome = Outcome::Applied(to_cbor(&KvReply::Written { version: LogIndex(1) }).unwrap());
        let payload_crc = crc32c::crc32c(&to_cbor(&put("k", "v1")).unwrap());
        story.replied(Reply { session: SessionId(2), opening: Opening(2), request: RequestId(1), index, term, payload_crc, repeat: true, outcome });
    };
    the_outcome_of_another_command: "outcomes", |story| {
        let (index, term) = story.place("v1");
        let outcome = Outcome::Applied(to_cbor(&KvReply::Written { version: index }).unwrap());
        let payload_crc = crc32c::crc32c(&to_cbor(&put("k", "v2")).unwrap());
        story.replied(Reply { session: SessionId(2), opening: Opening(2), request: RequestId(1), index, term, payload_crc, repeat: true, outcome });
    };
    a_conflict_that_is_none: "outcomes", |story| {
        let (index, term) = story.place("v1");
        let outcome = Outcome::Conflict;
        let payload_crc = crc32c::crc32c(&to_cbor(&put("k", "v1")).unwrap());
        story.replied(Reply { session: SessionId(2), opening: Opening(2), request: RequestId(1), index, term, payload_crc, repeat: false, outcome });
    };
    stale_for_no_reason: "outcomes", |story| {
        let (index, term, outcome) = (LogIndex(0), Term(0), Outcome::Stale);
        let (session, opening, request) = (SessionId(2), Opening(2), RequestId(40));
        story.replied(Reply { session, opening, request, index, term, payload_crc: 0, repeat: false, outcome });
    };
    superseded_by_nobody: "outcomes", |story| {
        let (index, term, outcome) = (LogIndex(0), Term(0), Outcome::Superseded(Opening(4)));
        let (session, opening, request) = (SessionId(2), Opening(2), RequestId(1));
        story.replied(Reply { session, opening, request, index, term, payload_crc: 0, repeat: false, outcome });
    };
    a_conflict_with_the_same_command: "outcomes", |story| {
        let ticket = Some(Ticket { session: SessionId(2), request: RequestId(1) });
        let call = story.call(1, Operation::Propose { ticket, command: put("k", "v1") });
        story.returned(call, Returned::Conflict);
    };

    a_verdict_bit_too_many: "verdict bits", |story| story.spoil_feed(3, 2, 0b1);
    a_verdict_bit_too_few: "verdict bits", |story| story.spoil_feed(2, 4, 0b0);

    a_reply_that_the_command_did_not_give: "index oracle", |story| {
        story.spoil_applied(|_, _, reply| *reply = Some(KvReply::Deleted { existed: true }));
    };
    a_reply_from_another_command: "index oracle", |story| story.spoil_applied(|index, _, _| *index = LogIndex(4));
    a_read_that_shows_what_was_not_there: "index oracle", |story| {
        story.read(2, Consistency::Local, "k", read("v1", 3), Some(LogIndex(6)));
    };
    a_linearizable_read_that_is_behind: "index oracle", |story| {
        story.read(2, Consistency::Linearizable, "k", read("v1", 3), Some(LogIndex(3)));
    };
    a_linearizable_read_that_is_behind_and_does_not_say_where: "index oracle", |story| {
        story.read(2, Consistency::Linearizable, "k", read("v1", 3), None);
    };
    an_effect_before_what_was_known: "index oracle", |story| {
        let (before, after) = (story.command(71, &put("k", "early")), story.command(72, &put("k", "late")));
        let late = story.call(1, Operation::Propose { ticket: None, command: put("k", "late") });
        let run = story.seal(3, &[before, after]);
        let (index, term) = (run.header().first, run.header().term);
        let written = |index| Returned::Applied { index, term, repeat: false, reply: Some(KvReply::Written { version: index }) };
        story.returned(late, written(index.next()));
        let early = story.call(1, Operation::Propose { ticket: None, command: put("k", "early") });
        story.returned(early, written(index));
        story.commit(&run);
    };

    a_read_that_goes_back: "session reads", |story| {
        story.read(2, Consistency::Local, "k", None, Some(LogIndex(6)));
        story.read(2, Consistency::Local, "k", read("v1", 3), Some(LogIndex(3)));
    };
    a_session_read_behind_its_own_command: "session reads", |story| {
        story.read(1, Consistency::Session, "k", read("v1", 3), Some(LogIndex(3)));
    };

    a_call_that_returned_before_the_own_replica_had_it: "session reads", |story| {
        story.read(1, Consistency::Local, "k", read("v1", 3), Some(LogIndex(3)));
    };

    a_learner_that_goes_back: "learner prefix", |story| story.learnt(1, 1, 3);
    a_learner_with_another_history: "learner prefix", |story| {
        let (learner, index) = (LearnerId(ClientId(7), 1), LogIndex(3));
        story.push(What::Learnt { learner, index, chain: Some(Chain(7)), state_hash: None });
    };
    a_stream_that_misses_a_command: "learner prefix", |story| {
        story.push(What::StreamBegan { stream: LearnerId(ClientId(7), 2), from: LogIndex(1) });
        story.streamed(7, 2, 4);
    };
    a_stream_that_gives_one_twice: "learner prefix", |story| story.streamed(1, 2, 3);
    a_stream_that_gives_what_had_no_effect: "learner prefix", |story| {
        story.push(What::StreamBegan { stream: LearnerId(ClientId(7), 2), from: LogIndex(2) });
        story.streamed(7, 2, 2);
    };

    two_servers_with_different_states: "same index, same state", |story| {
        story.spoil_status(2, |status| status.state_hash = Some("ff".into()));
    };
    a_learner_with_another_state: "same index, same state", |story| {
        let index = story.last();
        let learner = LearnerId(ClientId(7), 1);
        story.push(What::Learnt { learner, index, chain: None, state_hash: Some([9; 32]) });
    };
    two_servers_with_different_sessions: "same index, same state", |story| {
        story.spoil_status(2, |status| status.sessions_hash = Some("ff".into()));
    };

    a_session_too_many: "bounds", |story| story.spoil_status(1, |status| status.sessions += 1);
    clients_without_end: "bounds", |story| story.spoil_status(1, |status| status.clients = 1_000_000);
    a_server_that_goes_back: "bounds", |story| {
        let mut status = story.status(1);
        status.commit = RunIndex(2);
        story.push(What::Status { server: seat(1), status: Box::new(status) });
    };

    a_run_without_progress: "liveness", |story| {
        story.events.retain(|event| !matches!(event, What::Returned { outcome: Returned::Applied { .. }, .. }));
    };
    no_leader_after_healing: "liveness", |story| (1..=3).for_each(|server| story.spoil_status(server, |status| status.leader = None));
    servers_that_do_not_converge: "liveness", |story| story.spoil_status(2, |status| status.applied = status.applied.previous());
    a_learner_that_stays_behind: "liveness", |story| {
        story.push(What::Learnt { learner: LearnerId(ClientId(7), 1), index: LogIndex(3), chain: None, state_hash: None });
    };
    a_call_that_never_returns: "liveness", |story| {
        let operation = Operation::Read { consistency: Consistency::Linearizable, key: "k".into() };
        story.before_the_end(What::Called { call: CallId(900), client: ClientId(1), operation });
    };
    a_server_that_ends_after_healing: "liveness", |story| {
        story.before_the_end(What::Ended { server: seat(1), how: End::Itself("diverged".into()) });
    };
    a_run_that_never_heals: "liveness", |story| {
        story.events.retain(|event| !matches!(event, What::Phase(Phase::Healed)));
    };

    a_stale_linearizable_read: "linearizability", |story| story.read(2, Consistency::Linearizable, "k", read("v1", 3), None);
    a_write_that_is_lost: "linearizability", |story| {
        let call = story.call(2, Operation::Propose { ticket: None, command: delete("gone") });
        let reply = Some(KvReply::Deleted { existed: true });
        story.returned(call, Returned::Applied { index: LogIndex(6), term: Term(2), repeat: false, reply });
    };
    a_compare_and_set_that_does_not_compare: "linearizability", |story| {
        let expected = voter_mesh::machine::kv::KvExpected::Absent;
        let command = KvCommand::CompareAndSet { key: "k".into(), expected, value: "w".into() };
        story.call_applied(1, Operation::Propose { ticket: None, command: put("k", "there") });
        let call = story.call(2, Operation::Propose { ticket: None, command });
        let (index, reply) = (story.last().next(), Some(KvReply::Written { version: story.last().next() }));
        story.returned(call, Returned::Applied { index, term: Term(2), repeat: false, reply });
    };
}

#[test]
fn what_is_not_told_is_not_taken_for_granted() {
    // An unknown outcome may have its effect or not; both are good, and so is the same command again under its ticket.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut story = Story::good();
        let ticket = Ticket { session: SessionId(2), request: RequestId(80) };
        let operation = |ticket| Operation::Propose { ticket, command: put("k", "perhaps") };
        let call = story.call(1, operation(None));
        story.returned(call, Returned::Unknown { ticket: Some(ticket) });
        let run = story.seal(3, &[story.command(80, &put("k", "perhaps"))]);
        let (index, term) = (run.header().first, run.header().term);
        let again = story.call(1, operation(Some(ticket)));
        story.returned(again, Returned::Applied { index, term, repeat: true, reply: Some(KvReply::Written { version: index }) });
        story.commit(&run);
        let never = story.call(1, Operation::Propose { ticket: None, command: put("k", "never") });
        story.returned(never, Returned::Unknown { ticket: None });
        let violations = judged(story).violations;
        // The story's servers and learners said their last words before this.
        assert!(violations.iter().all(|violation| ["liveness", "durability"].contains(&violation.checker)), "{violations:#?}");
    });
}
