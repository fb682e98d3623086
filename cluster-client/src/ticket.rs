//! A ticket names one request for ever: persist it before proposing under it, and a crash cannot make it apply twice.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use voter_mesh::ids::{RequestId, SessionId};

/// Names one request: its session and its id in it. As text it is `SESSION-REQUEST`, two decimal numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Ticket {
    /// The session.
    pub session: SessionId,
    /// The request id within the session.
    pub request: RequestId,
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.session, self.request)
    }
}

/// The text is not a ticket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("not a ticket: expected SESSION-REQUEST, two decimal numbers")]
pub struct TicketError;

impl FromStr for Ticket {
    type Err = TicketError;

    fn from_str(text: &str) -> Result<Self, TicketError> {
        let (session, request) = text.split_once('-').ok_or(TicketError)?;
        let number = |text: &str| match text.parse::<u64>() {
            // One ticket has one text.
            Ok(number) if number.to_string() == text => Ok(number),
            _ => Err(TicketError),
        };
        Ok(Self { session: SessionId(number(session)?), request: RequestId(number(request)?) })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_survives_its_text_and_no_other_text_is_one() {
        let ticket = Ticket { session: SessionId(3), request: RequestId(u64::MAX) };
        assert_eq!(ticket.to_string().parse::<Ticket>(), Ok(ticket));
        for bad in ["", "3", "3-", "-3", "3-4-5", "03-4", "+3-4", "3 -4", "3-18446744073709551616"] {
            assert_eq!(bad.parse::<Ticket>(), Err(TicketError), "{bad}");
        }
    }
}
