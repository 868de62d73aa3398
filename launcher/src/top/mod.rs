//! `hv top`: what running VMs do, interval by interval.
//!
//! On a terminal (`screen`, which keeps what `view` knows and shows what `draw` draws), as tables or as lines of JSON
//! (`batch`). VMs are asked over their control sockets; `history` keeps the last look at each, `rates` makes rates of
//! two, and `columns` says how they are shown. `detail` is one VM closely.
//!
//! Start at [`top`].

mod batch;
mod columns;
mod detail;
mod draw;
mod history;
mod rates;
mod screen;
mod view;

use crate::cli::TopOptions;
use crate::control::Roster;
use crate::exit_code::Cause;
use crate::failure::Failure;
use history::{History, Row};
use std::io::IsTerminal;
use std::time::Duration;

/// How long VMs may take to say how they are, before they are shown as silent.
const PATIENCE: Duration = Duration::from_millis(300);

/// `hv top`; gives the exit code.
///
/// # Errors
///
/// The directory of control sockets cannot be had, or there is no terminal to draw on.
pub(crate) fn top(options: &TopOptions) -> Result<u8, Failure> {
    let looker = Looker { roster: Roster::open()?, history: History::default() };
    if options.json || options.batch.is_some() {
        return batch::run(options, looker);
    }
    if !std::io::stdout().is_terminal() {
        let failure = Failure::new(Cause::CannotStart, "standard output is not a terminal");
        return Err(failure.advise("`hv top --batch 1` prints a table, `hv top --json` lines of JSON"));
    }
    screen::run(options, looker)
}

/// Looks at all VMs, again and again.
struct Looker {
    roster: Roster,
    history: History,
}

impl Looker {
    fn look(&mut self) -> Result<Vec<Row>, Failure> {
        Ok(self.history.rows(self.roster.look(PATIENCE)?))
    }
}
