//! A raw client of one session on two links that sends each proposal several times: on both links, in any order, long after it was
//! answered, and now and then with another payload, or one that is no command. Some of its sessions never raise their floor until they
//! break their window, some are closed in the middle, some overtake themselves: see [`overtake`].

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use relay::wire::{
    ClientFrame, FeedMode, Proposal, ServerFrame, SessionProof, SessionSecret, SessionStatus, WINDOW_MAX, WireReply,
};
use tokio::time::{Instant, timeout_at};
use voter_mesh::ids::{Epoch, Opening, RequestId, Seat, SessionId};
use voter_mesh::machine::kv::{KEY_BYTES_MAX, KvCommand};
use voter_mesh::machine::to_cbor;
use voter_mesh::outcome::{Outcome, Reply};

use super::machine::Machine;
use super::peer::{NoLink, Peer, hello};
use crate::sim::random::{FNV1A_OF_NOTHING, Random, fnv1a};
use crate::sim::record::{Operation, Phase, What};

mod overtake;

/// Ids that it remembers to send again.
const SENT_MAX: usize = 64;

/// How many times longer it thinks than others: it says everything several times.
const PAUSES: u64 = 3;

struct Sender {
    machine: Rc<Machine>,
    secret: SessionSecret,
    session: Option<(SessionId, Opening)>,
    /// Never raises its floor.
    lazy: bool,
    next: u64,
    /// What was sent of late, answered or not.
    sent: BTreeMap<RequestId, Bytes>,
    /// What is not answered.
    open: BTreeMap<RequestId, Bytes>,
    links: [Option<Peer>; 2],
    /// Says when the session is overtaken.
    whims: Random,
    /// A later opening of the session was asked for.
    overtaken: bool,
}

pub(super) async fn main(machine: Rc<Machine>) {
    let shared = Rc::clone(&machine.shared);
    loop {
        let mut secret = [0; 32];
        secret.fill_with(|| machine.below(256) as u8);
        let mut sender = Sender {
            machine: Rc::clone(&machine),
            secret: SessionSecret(secret),
            session: None,
            lazy: machine.below(4) == 0,
            next: 1,
            sent: BTreeMap::new(),
            open: BTreeMap::new(),
            links: [None, None],
            whims: Random::apart(fnv1a(FNV1A_OF_NOTHING, &secret), "session_overtaken"),
            overtaken: false,
        };
        // It ends with its session, or with the run.
        sender.run().await;
        if shared.is(Phase::Quiet) {
            shared.settle(machine.id);
            return;
        }
    }
}

impl Sender {
    async fn run(&mut self) {
        loop {
            let missing = self.links.iter().filter(|link| link.is_none()).count();
            if (missing == 2 || missing == 1 && self.machine.below(8) == 0) && !self.dial().await {
                return;
            }
            let quiet = self.machine.shared.is(Phase::Quiet);
            if quiet && self.open.is_empty() {
                return;
            }
            if self.session.is_none() {
                if quiet {
                    return;
                }
                let open = ClientFrame::SessionOpen { secret: self.secret.clone() };
                self.say(0, &open).await;
            } else if !self.propose(quiet).await {
                return;
            }
            if self.machine.below(300) == 0 {
                self.machine.shared.fault("session_closed", self.machine.id);
                self.say(0, &ClientFrame::SessionClose).await;
            }
            if self.is_to_be_overtaken() && !self.overtake().await {
                return;
            }
            let pause = Duration::from_millis(self.machine.between(self.machine.shared.plan.think_ms) * PAUSES);
            let deadline = Instant::now() + pause;
            for link in [0, 1] {
                if !self.hear(link, deadline).await {
                    return;
                }
            }
            if self.machine.below(100) == 0 {
                self.links[self.machine.below(2) as usize] = None;
            }
        }
    }

    /// Dials where there is no link. Whether the session goes on.
    async fn dial(&mut self) -> bool {
        for link in [0, 1] {
            if self.links[link].is_some() {
                continue;
            }
            let server = self.machine.below(16) as usize;
            let session = self.session.map(|(session, opening)| SessionProof {
                session,
                secret: self.secret.clone(),
                opening: Some(opening),
            });
            let cluster = None;
            let unanswered = if self.machine.below(2) == 0 { self.open.keys().copied().collect() } else { Vec::new() };
            let epoch = session.is_some().then_some(Epoch::FIRST);
            let hello = relay::wire::Hello { session, cluster, epoch, unanswered, ..hello(FeedMode::Thin) };
            match Peer::attach(&self.machine, server, hello).await {
                Ok(peer) if peer.admit.session != SessionStatus::Expired => self.links[link] = Some(peer),
                // It was detached for too long; or this server has not come as far as the session.
                Ok(peer) if self.session.is_none_or(|(session, _)| session.0 <= peer.admit.commit.0) => return false,
                Ok(_) => {}
                Err(NoLink::Refused(_) | NoLink::Torn) => self.machine.sleep_ms((10, 300)).await,
            }
        }
        true
    }

    /// Says something on a link, or on the other one if there is none.
    async fn say(&mut self, link: usize, frame: &ClientFrame) {
        let link = if self.links[link].is_some() { link } else { 1 - link };
        if let Some(peer) = &mut self.links[link]
            && !peer.say(frame).await
        {
            self.links[link] = None;
        }
    }

    fn payload(&mut self) -> Bytes {
        let (client, number) = (self.machine.id.0, self.machine.below(1 << 32));
        let mut key = format!("d{client}.{}", self.next / 64).into_bytes();
        match self.machine.below(100) {
            0 => return Bytes::from(number.to_le_bytes().to_vec()),
            1 => key.resize(KEY_BYTES_MAX + 1, b'x'),
            _ => {}
        }
        let value = format!("d{client}.{}.{number}", self.next).into_bytes();
        to_cbor(&KvCommand::Put { key, value }).expect("a command encodes")
    }

    /// Sends some proposals, each some times. Whether the session goes on.
    async fn propose(&mut self, quiet: bool) -> bool {
        let mut ids: Vec<RequestId> = self.open.keys().copied().filter(|_| quiet || self.machine.below(8) == 0).collect();
        if !quiet {
            let lowest = self.open.keys().next().map_or(self.next, |id| id.0);
            for _ in 0..=self.machine.below(4) {
                self.next += 1 + self.machine.below(3);
                if self.next - lowest >= WINDOW_MAX as u64 {
                    self.next = lowest + WINDOW_MAX as u64 - 1;
                    break;
                }
                let (id, payload) = (RequestId(self.next), self.payload());
                self.open.insert(id, payload.clone());
                self.sent.insert(id, payload);
                ids.push(id);
            }
            while self.sent.len() > SENT_MAX {
                self.sent.pop_first();
            }
            let old: Vec<RequestId> = self.sent.keys().copied().filter(|_| self.machine.below(32) == 0).collect();
            if !old.is_empty() {
                self.machine.shared.fault("old_request_again", self.machine.id);
            }
            ids.extend(old);
        }
        for round in 0..=self.machine.below(2) {
            if round > 0 {
                self.machine.shared.fault("request_again", self.machine.id);
            }
            // Any order.
            for at in (1..ids.len()).rev() {
                ids.swap(at, self.machine.below(at as u64 + 1) as usize);
            }
            let proposals: Vec<Proposal> = ids.iter().filter_map(|id| self.proposal(*id)).collect();
            if proposals.is_empty() {
                break;
            }
            let Some((session, opening)) = self.session else { return false };
            for Proposal { id, payload, .. } in &proposals {
                let operation = Operation::Send { session, opening, request: *id, payload: payload.clone() };
                let _ = self.machine.shared.world.recorder.call(self.machine.id, operation);
            }
            let link = self.machine.below(2) as usize;
            self.say(link, &ClientFrame::Propose(proposals)).await;
        }
        true
    }

    /// A request as it is sent now: with the present floor, and hardly ever with another payload.
    fn proposal(&mut self, id: RequestId) -> Option<Proposal> {
        let lowest = self.open.keys().next().map_or(RequestId(self.next + 1), |floor| *floor);
        let floor = if self.lazy { RequestId(1) } else { lowest.min(id) };
        let payload = match self.open.get(&id) {
            Some(payload) => payload.clone(),
            // Only what is answered: of what is not, nobody could tell which of the two payloads came first.
            None if self.machine.below(4) == 0 => {
                self.machine.shared.fault("other_payload", self.machine.id);
                self.payload()
            }
            None => self.sent.get(&id)?.clone(),
        };
        Some(Proposal { id, floor, payload })
    }

    /// Takes what comes on a link until `deadline`. Whether the session goes on.
    async fn hear(&mut self, link: usize, deadline: Instant) -> bool {
        while let Some(peer) = &mut self.links[link] {
            let server = peer.server;
            let Ok(frame) = timeout_at(deadline, peer.hear()).await else { return true };
            match frame {
                None => self.links[link] = None,
                Some(ServerFrame::SessionOpened { session, opening }) if self.session.is_none() => {
                    self.session = Some((session, opening));
                    // The other link does not speak for it yet.
                    self.links[1 - link] = None;
                }
                Some(ServerFrame::Superseded { .. }) => {
                    self.superseded();
                    return false;
                }
                Some(ServerFrame::Replies(replies)) => {
                    let mut goes_on = true;
                    for reply in replies {
                        goes_on &= self.replied(server, reply);
                    }
                    if !goes_on {
                        return false;
                    }
                }
                Some(_) => {}
            }
        }
        true
    }

    fn replied(&mut self, server: Seat, reply: WireReply) -> bool {
        let Some((session, opening)) = self.session else { return true };
        let WireReply { id: request, index, term, payload_crc, repeat, outcome } = reply;
        self.open.remove(&request);
        self.machine.shared.saw(index);
        if matches!(outcome, Outcome::Superseded(_)) {
            self.superseded();
        }
        let goes_on = !matches!(outcome, Outcome::SessionExpired | Outcome::WindowBroken | Outcome::Superseded(_));
        let reply = Reply { session, opening, request, index, term, payload_crc, repeat, outcome };
        self.machine.shared.world.recorder.record(What::Replied { client: self.machine.id, server, reply });
        goes_on
    }

    fn superseded(&self) {
        if !self.overtaken {
            self.machine.shared.complain(self.machine.id, "superseded by nobody");
        }
    }
}
