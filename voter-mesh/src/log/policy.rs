//! What to do about a damaged log at the start. Policies decide about files and never about votes: under each, a log that lost what
//! it had acknowledged is suspect until it is whole again, and a lone voter does not start on one.

use super::Verdict;

/// What a server does at its start when its log is damaged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DamagePolicy {
    /// Fetch what is missing between good parts from the other servers before the replica starts; what nobody has, the leader gives
    /// back later.
    #[default]
    Repair,
    /// End the log before its first bad record at once; the leader gives back the rest.
    TruncateToLastGood,
    /// Do not start. An ordinary power cut is no damage: a torn or incomplete last batch stops nobody.
    RefuseStart,
    /// As `TruncateToLastGood`, but keep the damaged files beside, and show the damage in the status until the log is whole.
    AlertAndContinue,
}

/// What was found in a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Findings {
    /// What the log is worth as it stands.
    pub verdict: Verdict,
    /// Runs that an earlier sync has confirmed cannot be read: not what a power cut does.
    pub damaged: bool,
    /// Some of what cannot be read has good runs behind it.
    pub holes: bool,
    /// There are other members, who may have what is missing.
    pub peers: bool,
    /// No other server votes: a leader that could give back an end is nobody but this one.
    pub sole_voter: bool,
}

/// What is done about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Start with what is there.
    Start,
    /// The last batch is incomplete, and no other server can give it back: its end stands, and the owner is told.
    AcceptEnd,
    /// Fill the holes from peers, then look again.
    Fill,
    /// Do not start, because the policy says so.
    Refuse,
    /// Do not start: what was acknowledged is gone, and no other server can give it back.
    Lost,
}

/// Decides how a server starts. `fillable`: peers were not asked yet.
#[must_use]
pub const fn decide(policy: DamagePolicy, found: &Findings, fillable: bool) -> Decision {
    match (policy, found.verdict) {
        (DamagePolicy::RefuseStart, _) if found.damaged => Decision::Refuse,
        (DamagePolicy::Repair, _) if found.holes && fillable && found.peers => Decision::Fill,
        (_, Verdict::Suspect) if found.sole_voter => Decision::Lost,
        (_, Verdict::Doubtful) if found.sole_voter => Decision::AcceptEnd,
        _ => Decision::Start,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_decide_about_files_and_never_about_votes() {
        let found = |verdict, damaged, holes, alone: bool| Findings { verdict, damaged, holes, peers: !alone, sole_voter: alone };
        let damaged = found(Verdict::Suspect, true, true, false);
        assert_eq!(decide(DamagePolicy::Repair, &damaged, true), Decision::Fill);
        assert_eq!(decide(DamagePolicy::Repair, &damaged, false), Decision::Start, "as suspect");
        assert_eq!(decide(DamagePolicy::TruncateToLastGood, &damaged, true), Decision::Start);
        assert_eq!(decide(DamagePolicy::AlertAndContinue, &damaged, true), Decision::Start);
        assert_eq!(decide(DamagePolicy::RefuseStart, &damaged, true), Decision::Refuse);

        let power_cut = found(Verdict::Doubtful, false, false, true);
        let lost = found(Verdict::Suspect, true, true, true);
        for policy in [DamagePolicy::Repair, DamagePolicy::TruncateToLastGood, DamagePolicy::AlertAndContinue] {
            assert_eq!(decide(policy, &power_cut, true), Decision::AcceptEnd, "{policy:?}");
            assert_eq!(decide(policy, &lost, true), Decision::Lost, "{policy:?}");
        }
        assert_eq!(decide(DamagePolicy::RefuseStart, &power_cut, true), Decision::AcceptEnd, "no damage");
        assert_eq!(decide(DamagePolicy::RefuseStart, &lost, true), Decision::Refuse);

        // A hole below a snapshot costs nothing that was acknowledged, but may still be filled for those who read old runs.
        let below = found(Verdict::Clean, true, true, false);
        assert_eq!(decide(DamagePolicy::Repair, &below, true), Decision::Fill);
        assert_eq!(decide(DamagePolicy::Repair, &Findings { peers: false, ..below }, true), Decision::Start);

        // A standby may have what the only voter lacks, but cannot give it back as a leader.
        let with_standby = Findings { peers: true, ..lost };
        assert_eq!(decide(DamagePolicy::Repair, &with_standby, true), Decision::Fill);
        assert_eq!(decide(DamagePolicy::Repair, &with_standby, false), Decision::Lost);
    }
}
