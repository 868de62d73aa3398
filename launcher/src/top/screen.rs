//! The terminal: threads wait for keys, for signals and for VMs, and one draws.
//!
//! A VM that is slow to answer keeps nobody from seeing what is known and from pressing keys. The terminal is as it was
//! before when this ends, in whichever way: by a key, by a signal, or by a panic.
//!
//! Start at [`run`].

use super::Looker;
use super::draw::draw;
use super::history::Row;
use super::view::{View, Wish};
use crate::cli::TopOptions;
use crate::control::commands;
use crate::exit_code::Cause;
use crate::failure::Failure;
use crate::signals::Signals;
use crossbeam_channel::{Receiver, Sender, unbounded};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, KeyEvent, KeyEventKind};
use std::io;
use std::time::Duration;

/// The second look comes soon, for there are no rates before it.
const FIRST_INTERVAL: Duration = Duration::from_millis(300);

/// Something to which the screen reacts.
enum Event {
    Rows(Vec<Row>),
    Key(KeyEvent),
    /// The terminal has another size.
    Resized,
    /// What became of a wish.
    Told(String),
    /// A signal asks to end.
    Ends(Cause),
    /// VMs or keys cannot be had any more.
    Failed(Failure),
}

/// Shows VMs until somebody asks to end; gives the exit code.
pub(super) fn run(options: &TopOptions, looker: Looker) -> Result<u8, Failure> {
    let cannot = |error| Failure::cannot("the terminal cannot be drawn on", error);
    let signals = Signals::catch().map_err(|error| Failure::cannot("signals cannot be caught", error))?;
    let (events, events_out) = unbounded();
    let interval = options.interval;
    let mut terminal = ratatui::try_init().map_err(cannot)?; // a panic restores it from here on
    let view = View::new(options.sort, interval);
    let ended = start(&events, "hv-top-keys", keys)
        .and_then(|()| start(&events, "hv-top-signals", move |events| wait_for_signal(&signals, events)))
        .and_then(|()| start(&events, "hv-top-look", move |events| look(looker, interval, events)))
        .map_err(|error| Failure::cannot("a thread cannot be made", error))
        .and_then(|()| show(&mut terminal, view, &events, &events_out));
    ratatui::restore();
    ended
}

/// Starts a thread that is never waited for: it ends with the process.
fn start(
    events: &Sender<Event>,
    name: &str,
    work: impl FnOnce(&Sender<Event>) + Send + 'static,
) -> io::Result<()> {
    let events = events.clone();
    std::thread::Builder::new().name(name.into()).spawn(move || work(&events)).map(drop)
}

fn keys(events: &Sender<Event>) {
    loop {
        let event = match event::read() {
            Ok(event::Event::Key(key)) if key.kind != KeyEventKind::Release => Event::Key(key),
            Ok(event::Event::Resize(..)) => Event::Resized,
            Ok(_) => continue,
            Err(error) => Event::Failed(Failure::cannot("the keyboard cannot be read", error)),
        };
        let failed = matches!(event, Event::Failed(_));
        if events.send(event).is_err() || failed {
            return;
        }
    }
}

fn wait_for_signal(signals: &Signals, events: &Sender<Event>) {
    let _ = events.send(Event::Ends(signals.wait(None))); // nobody: it ends already
}

fn look(mut looker: Looker, interval: Duration, events: &Sender<Event>) {
    let mut wait = FIRST_INTERVAL.min(interval);
    loop {
        let (event, failed) = match looker.look() {
            Ok(rows) => (Event::Rows(rows), false),
            Err(failure) => (Event::Failed(failure), true),
        };
        if events.send(event).is_err() || failed {
            return;
        }
        std::thread::sleep(wait);
        wait = interval;
    }
}

fn show(
    terminal: &mut DefaultTerminal,
    mut view: View,
    events: &Sender<Event>,
    events_out: &Receiver<Event>,
) -> Result<u8, Failure> {
    // All that has come is taken in before it is drawn.
    while let Ok(first) = events_out.recv() {
        for event in std::iter::once(first).chain(events_out.try_iter()) {
            match event {
                Event::Rows(rows) => view.update(rows),
                Event::Key(key) => {
                    view.told.clear();
                    match view.key(key) {
                        Some(Wish::End) => return Ok(0),
                        Some(Wish::SetPaused { name, paused }) => set_paused(name, paused, events),
                        None => {}
                    }
                }
                Event::Resized => {} // drawing finds out
                Event::Told(told) => view.told = told,
                Event::Ends(cause) => return Ok(cause.code()),
                Event::Failed(failure) => return Err(failure),
            }
        }
        let drawn = terminal.draw(|frame| draw(frame, &mut view));
        drawn.map_err(|error| Failure::cannot("the terminal cannot be drawn on", error))?;
    }
    Ok(0)
}

/// Asks for it on a thread of its own: a pause may take a second, and more if the VM does not answer.
fn set_paused(name: String, paused: bool, events: &Sender<Event>) {
    let ask = move |events: &Sender<Event>| {
        let told = match commands::set_paused(&name, paused) {
            Ok(()) => format!("{name} is {}", if paused { "paused" } else { "running" }),
            Err(failure) => failure.brief(),
        };
        let _ = events.send(Event::Told(told));
    };
    if let Err(error) = start(events, "hv-top-pause", ask) {
        let _ = events.send(Event::Told(format!("a thread cannot be made: {error}")));
    }
}
