//! What the screen shows of all that is known, and what keys change about that. Nothing is drawn here.
//!
//! Start at [`View::key`].

use super::history::{Row, sort};
use crate::cli::SortBy;
use crate::control::State;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::widgets::TableState;
use std::time::Duration;

/// The screen's state.
pub(super) struct View {
    pub rows: Vec<Row>,
    pub order: SortBy,
    pub turned_round: bool,
    pub interval: Duration,
    /// The name of the VM that is selected; it stays so wherever it is sorted to.
    selected: Option<String>,
    /// Which row that is, and from which on rows are shown.
    pub table: TableState,
    /// The VM that is selected is shown closely.
    pub closely: bool,
    /// Lines of that which are scrolled over.
    pub scrolled: u16,
    /// What became of the last thing that was asked for.
    pub told: String,
}

/// What a key asks for that is not the view's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    End,
    SetPaused { name: String, paused: bool },
}

impl View {
    pub(super) fn new(order: SortBy, interval: Duration) -> Self {
        Self {
            rows: Vec::new(),
            order,
            turned_round: false,
            interval,
            selected: None,
            table: TableState::default(),
            closely: false,
            scrolled: 0,
            told: String::new(),
        }
    }

    /// There is something new to show.
    pub(super) fn update(&mut self, rows: Vec<Row>) {
        self.rows = rows;
        self.sort();
    }

    fn sort(&mut self) {
        sort(&mut self.rows, self.order, self.turned_round);
        let place = self.rows.iter().position(|row| Some(&row.name) == self.selected.as_ref());
        // If it has gone, the one in its place.
        let place = place.or_else(|| Some(self.table.selected()?.min(self.rows.len().checked_sub(1)?)));
        self.select(place.unwrap_or(0));
    }

    fn select(&mut self, place: usize) {
        let row = self.rows.get(place);
        let name = row.map(|row| row.name.clone());
        self.table.select(row.map(|_| place));
        if name != self.selected {
            self.scrolled = 0;
        }
        self.selected = name;
    }

    /// The VM that is selected.
    pub(super) fn selected(&self) -> Option<&Row> {
        self.rows.get(self.table.selected()?)
    }

    fn move_by(&mut self, rows: isize) {
        let last = self.rows.len().saturating_sub(1);
        self.select(self.table.selected().unwrap_or(0).saturating_add_signed(rows).min(last));
    }

    /// A key was pressed.
    pub(super) fn key(&mut self, key: KeyEvent) -> Option<Wish> {
        const PAGE: u16 = 5;
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return (key.code == KeyCode::Char('c')).then_some(Wish::End);
        }
        match key.code {
            KeyCode::Char('q') => return Some(Wish::End),
            KeyCode::Esc if self.closely => self.closely = false,
            KeyCode::Esc => return Some(Wish::End),
            KeyCode::Up | KeyCode::Char('k') => self.move_by(-1),
            KeyCode::Down | KeyCode::Char('j') => self.move_by(1),
            KeyCode::Home => self.select(0),
            KeyCode::End => self.move_by(isize::MAX),
            KeyCode::PageUp => self.scrolled = self.scrolled.saturating_sub(PAGE),
            KeyCode::PageDown => self.scrolled = self.scrolled.saturating_add(PAGE),
            KeyCode::Enter | KeyCode::Char(' ') => self.closely = !self.closely,
            KeyCode::Char('p') => return self.pause(),
            KeyCode::Char('r') => {
                self.turned_round = !self.turned_round;
                self.sort();
            }
            KeyCode::Char(key) => {
                if let Some((_, order)) = ORDERS.iter().find(|(of, _)| *of == key) {
                    self.order = *order;
                    self.sort();
                }
            }
            _ => {}
        }
        None
    }

    fn pause(&self) -> Option<Wish> {
        let row = self.selected()?;
        let paused = row.status.as_ref()?.state == State::Running;
        Some(Wish::SetPaused { name: row.name.clone(), paused })
    }
}

/// Keys that say what to sort by.
const ORDERS: [(char, SortBy); 7] = [
    ('c', SortBy::Cpu),
    ('h', SortBy::Hypercalls),
    ('t', SortBy::Traps),
    ('s', SortBy::Steal),
    ('m', SortBy::Memory),
    ('d', SortBy::Devices),
    ('n', SortBy::Name),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Seen, Status};
    use crate::top::history::History;

    fn rows(names: &[&str]) -> Vec<Row> {
        let seen = names.iter().map(|name| Seen {
            name: (*name).into(),
            status: Ok(Box::new(Status { name: (*name).into(), ..Status::example() })),
        });
        History::default().rows(seen.collect())
    }

    fn view(names: &[&str]) -> View {
        let mut view = View::new(SortBy::Name, Duration::from_secs(1));
        view.update(rows(names));
        view
    }

    fn press(view: &mut View, keys: &[KeyCode]) -> Option<Wish> {
        keys.iter().fold(None, |_, key| view.key(KeyEvent::new(*key, KeyModifiers::NONE)))
    }

    #[test]
    fn the_selection_stays_with_its_vm() {
        let mut view = view(&["b", "c", "d"]);
        press(&mut view, &[KeyCode::Down]);
        assert_eq!(view.selected().unwrap().name, "c");
        view.update(rows(&["a", "b", "c", "d"]));
        assert_eq!((view.selected().unwrap().name.as_str(), view.table.selected()), ("c", Some(2)));
        press(&mut view, &[KeyCode::Char('r')]);
        assert_eq!((view.selected().unwrap().name.as_str(), view.table.selected()), ("c", Some(1)));
        view.update(rows(&["a"]));
        assert_eq!(view.selected().unwrap().name, "a");
        view.update(Vec::new());
        assert!(view.selected().is_none());
        press(&mut view, &[KeyCode::Down, KeyCode::Up, KeyCode::End, KeyCode::Char('p')]);
        assert!(view.selected().is_none());
        view.update(rows(&["z"]));
        assert_eq!(view.selected().unwrap().name, "z");
    }

    #[test]
    fn keys_do_what_the_help_says() {
        let mut view = view(&["a", "b"]);
        assert_eq!(press(&mut view, &[KeyCode::Char('t')]), None);
        assert_eq!(view.order, SortBy::Traps);
        press(&mut view, &[KeyCode::Enter, KeyCode::PageDown]);
        assert!(view.closely && view.scrolled == 5);
        press(&mut view, &[KeyCode::Esc]);
        assert!(!view.closely);
        let wish = Wish::SetPaused { name: "a".into(), paused: false }; // the example is paused
        assert_eq!(press(&mut view, &[KeyCode::Home, KeyCode::Char('p')]), Some(wish));
        assert_eq!(press(&mut view, &[KeyCode::Char('q')]), Some(Wish::End));
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(view.key(interrupt), Some(Wish::End));
    }
}
