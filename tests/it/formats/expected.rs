//! What the fixtures hold, written down. By hand: whoever changes a line here says that servers read old files otherwise.

/// Rotated, cut at a conflict, trimmed, and gone on in the trimmed file; two snapshots and their verdicts.
pub(super) const MEMBER: &str = "\
0000000000000002.seg: Continues 2 of 1.1 behind run 5 term 1 entry 9 time 1700000002000 chain 8664df04
  mark 12: term 2 vote 2.1 commit 7, last run 9 term 1 entry 14 time 1700000004000 chain f73b5905, synced 9, goal none, lost false
  mark 11: term 1 vote 0.0 commit 7, last run 9 term 1 entry 14 time 1700000004000 chain f73b5905, synced 7, goal none, lost false
  run 6 term 1 entry 10 time 1700000002500 chain 7be95b90: Config 452
  run 7 term 1 entry 12 time 1700000003000 chain 34cf53bf: SessionAttach 24, Command 15
  nothing
0000000000000003.seg: Continues 3 of 1.1 behind run 7 term 1 entry 12 time 1700000003000 chain 34cf53bf
  mark 18: term 2 vote 2.1 commit 10, last run 11 term 2 entry 19 time 1700000005000 chain 6bc3c514, synced 10, goal none, lost false
  mark 17: term 2 vote 2.1 commit 10, last run 10 term 2 entry 17 time 1700000004500 chain abc946b2, synced 9, goal none, lost false
  run 8 term 2 entry 13 time 1700000003500 chain ae97a5b2: Noop 0
  run 9 term 2 entry 15 time 1700000004000 chain 0eed9b37: Command 23, SessionEnd 9
  run 10 term 2 entry 17 time 1700000004500 chain abc946b2: Command 27, SessionOpen 32
  run 11 term 2 entry 19 time 1700000005000 chain 6bc3c514: Command 80, Command 80
  zeros
0000000000000004.seg: Continues 4 of 1.1 behind run 11 term 2 entry 19 time 1700000005000 chain 6bc3c514
  mark 22: term 2 vote 2.1 commit 12, last run 13 term 2 entry 23 time 1700000006000 chain 9d9e5fa4, synced 12, goal none, lost false
  mark 21: term 2 vote 2.1 commit 11, last run 12 term 2 entry 21 time 1700000005500 chain 4758fe07, synced 11, goal none, lost false
  run 12 term 2 entry 21 time 1700000005500 chain 4758fe07: Command 80, Command 80
  run 13 term 2 entry 23 time 1700000006000 chain 9d9e5fa4: Command 80, Command 80
  old bytes
verify: (records, first, last, term, snapshots, suspect) (8, 10, 23, 2, 2, false)
snapshot at run 7 term 1 entry 12 time 1700000003000 chain 34cf53bf; configuration of run 6 with 2.3
  a = one, version 4
  c = first, version 6
  session 2, opening 2, attached false, last active 7
    request 1 at 4 term 1: Written { version: LogIndex(4) }
    request 2 at 5 term 1: Written { version: LogIndex(5) }
  session 3, opening 11, attached true, last active 12
    request 1 at 0 term 0: Stale
    request 2 at 8 term 1: Undecodable
    request 4 at 12 term 1: Deleted { existed: true }
  secret a1: session Some(2)
  secret b2: session Some(3)
  secret c3: session None
snapshot at run 10 term 2 entry 17 time 1700000004500 chain abc946b2; configuration of run 6 with 2.3
  a = one, version 4
  c = first, version 6
  d = four, version 14
  session 3, opening 11, attached true, last active 14
    request 1 at 0 term 0: Stale
    request 2 at 0 term 0: Stale
    request 3 at 0 term 0: Stale
    request 4 at 12 term 1: Deleted { existed: true }
    request 5 at 14 term 2: Written { version: LogIndex(14) }
  session 17, opening 17, attached false, last active 17
  secret a1: session None
  secret b2: session Some(3)
  secret c3: session Some(17)
log: runs 6 to 13, 3 of them behind the snapshot; term 2, vote 2.1, commit 12; Clean, must reach None, vote lost false
applied at run 13 term 2 entry 23 time 1700000006000 chain 9d9e5fa4; configuration of run 6 with 2.3
  a = one, version 4
  c = first, version 6
  d = four, version 14
  e = 333333333333333333333333333333333333333333333333333333333333, version 22
  f = 333333333333333333333333333333333333333333333333333333333333, version 23
  session 3, opening 11, attached true, last active 23
    request 1 at 0 term 0: Stale
    request 2 at 0 term 0: Stale
    request 3 at 0 term 0: Stale
    request 4 at 0 term 0: Stale
    request 5 at 14 term 2: Written { version: LogIndex(14) }
    request 6 at 19 term 2: Written { version: LogIndex(19) }
    request 7 at 21 term 2: Written { version: LogIndex(21) }
    request 8 at 23 term 2: Written { version: LogIndex(23) }
  session 17, opening 17, attached false, last active 22
    request 1 at 0 term 0: Stale
    request 2 at 0 term 0: Stale
    request 3 at 22 term 2: Written { version: LogIndex(22) }
  secret a1: session None
  secret b2: session Some(3)
  secret c3: session Some(17)
verdicts behind 0 to 17: [00011100000101100]
";

/// A newcomer's, restarted behind the member's newer snapshot.
pub(super) const INSTALLED: &str = "\
0000000000000002.seg: Restarts 2 of 2.3 behind run 10 term 2 entry 17 time 1700000004500 chain abc946b2
  mark 6: term 2 vote 0.0 commit 10, last run 12 term 2 entry 21 time 1700000005500 chain 4758fe07, synced 10, goal none, lost false
  mark 5: term 2 vote 0.0 commit 10, last run 10 term 2 entry 17 time 1700000004500 chain abc946b2, synced 10, goal none, lost false
  run 11 term 2 entry 19 time 1700000005000 chain 6bc3c514: Command 80, Command 80
  run 12 term 2 entry 21 time 1700000005500 chain 4758fe07: Command 80, Command 80
  zeros
verify: (records, first, last, term, snapshots, suspect) (2, 18, 21, 2, 1, false)
snapshot at run 10 term 2 entry 17 time 1700000004500 chain abc946b2; configuration of run 6 with 2.3
  a = one, version 4
  c = first, version 6
  d = four, version 14
  session 3, opening 11, attached true, last active 14
    request 1 at 0 term 0: Stale
    request 2 at 0 term 0: Stale
    request 3 at 0 term 0: Stale
    request 4 at 12 term 1: Deleted { existed: true }
    request 5 at 14 term 2: Written { version: LogIndex(14) }
  session 17, opening 17, attached false, last active 17
  secret a1: session None
  secret b2: session Some(3)
  secret c3: session Some(17)
log: runs 11 to 12, 2 of them behind the snapshot; term 2, vote 0.0, commit 10; Clean, must reach None, vote lost false
applied at run 12 term 2 entry 21 time 1700000005500 chain 4758fe07; configuration of run 6 with 2.3
  a = one, version 4
  c = first, version 6
  d = four, version 14
  e = 222222222222222222222222222222222222222222222222222222222222, version 20
  f = 222222222222222222222222222222222222222222222222222222222222, version 21
  session 3, opening 11, attached true, last active 21
    request 1 at 0 term 0: Stale
    request 2 at 0 term 0: Stale
    request 3 at 0 term 0: Stale
    request 4 at 0 term 0: Stale
    request 5 at 14 term 2: Written { version: LogIndex(14) }
    request 6 at 19 term 2: Written { version: LogIndex(19) }
    request 7 at 21 term 2: Written { version: LogIndex(21) }
  session 17, opening 17, attached false, last active 20
    request 1 at 0 term 0: Stale
    request 2 at 20 term 2: Written { version: LogIndex(20) }
  secret a1: session None
  secret b2: session Some(3)
  secret c3: session Some(17)
verdicts behind 17 to 17: []
";

/// It lost a confirmed run and one of its marks, then heard of two later terms.
pub(super) const SUSPECT: &str = "\
0000000000000001.seg: Restarts 1 of 3.1 behind run 1 term 1 entry 0 time 0 chain 11db5169
  mark 6: term 4 vote 0.0 commit 2, last run 2 term 1 entry 1 time 1700000000500 chain 6c0fd42c, synced 2, goal run 4 term 1 entry 3 time 1700000001500 chain 919f4328, lost true
  mark 7: term 5 vote 2.1 commit 2, last run 2 term 1 entry 1 time 1700000000500 chain 6c0fd42c, synced 2, goal run 4 term 1 entry 3 time 1700000001500 chain 919f4328, lost true
  run 2 term 1 entry 1 time 1700000000500 chain 6c0fd42c: SessionOpen 32
  damage
verify: (records, first, last, term, snapshots, suspect) (1, 1, 1, 5, 0, true)
  the log ends at run 2, and acknowledged runs up to 4 are missing
log: runs 2 to 2, 1 of them behind the snapshot; term 5, vote 2.1, commit 2; Suspect, must reach Some(4), vote lost true
verdicts behind 0 to 0: []
";
