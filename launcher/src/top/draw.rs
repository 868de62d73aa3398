//! Draws a view: a line of all VMs, the table, one VM closely if that is wanted, and the keys.

use super::batch::{order_name, summary};
use super::columns::{self, GAP};
use super::detail;
use super::view::View;
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table};

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const REVERSED: Style = Style::new().add_modifier(Modifier::REVERSED);

/// Keys, the most useful first: what does not fit is cut off.
const KEYS: &str = "q quit  ↑↓ select  Enter details  p pause/resume  sort: c CPU  h calls  t traps  s steal  m memory  \
                    d devices  n name  r turn round";

/// Fills the whole screen.
pub(super) fn draw(frame: &mut Frame<'_>, view: &mut View) {
    let whole = Layout::vertical([Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1)]);
    let [head, body, keys] = whole.areas(frame.area());
    let [table, details] = split(view, body);
    let by = format!("; by {}", order_name(view.order));
    let text =
        if view.told.is_empty() { summary(&view.rows, view.interval) + &by } else { view.told.clone() };
    frame.render_widget(Line::styled(format!("hv top  {text}"), BOLD), head);
    if view.rows.is_empty() {
        frame.render_widget(Paragraph::new("No VM is running; `hv run IMAGE` starts one."), table);
    } else {
        draw_table(frame, view, table);
    }
    if view.closely {
        draw_details(frame, view, details);
    }
    frame.render_widget(Line::styled(KEYS, DIM), keys);
}

/// The table's room, and that of the details: the table has what it needs of the half, and the details have the rest.
fn split(view: &View, body: Rect) -> [Rect; 2] {
    let needed = view.rows.len().saturating_add(2); // the headings, and a line between
    let most = if view.closely { body.height / 2 } else { body.height };
    let table = if view.closely { most.min(needed.try_into().unwrap_or(most)) } else { most };
    Layout::vertical([Constraint::Length(table), Constraint::Fill(1)]).areas(body)
}

fn draw_table(frame: &mut Frame<'_>, view: &mut View, area: Rect) {
    let width = columns::name_width(&view.rows);
    let columns = columns::fitting(area.width.into(), width);
    let right = |text: String| Cell::from(Text::from(text).alignment(Alignment::Right));
    let headings = columns.iter().map(|column| {
        let sorted = column.sort == Some(view.order);
        right(column.heading.into()).style(if sorted { REVERSED } else { Style::new() })
    });
    let header = Row::new(std::iter::once(Cell::from("NAME")).chain(headings)).style(BOLD);
    let rows = view.rows.iter().map(|row| {
        let name = Cell::from(columns::name(row, width));
        let cells = columns.iter().map(|column| right((column.cell)(row)));
        let style = if row.silent.is_some() { DIM } else { Style::new() };
        Row::new(std::iter::once(name).chain(cells)).style(style)
    });
    let widths = std::iter::once(width).chain(columns.iter().map(|column| column.width));
    let widths = widths.map(|width| Constraint::Length(width as u16));
    let table =
        Table::new(rows, widths).header(header).column_spacing(GAP as u16).row_highlight_style(REVERSED);
    frame.render_stateful_widget(table, area, &mut view.table);
}

fn draw_details(frame: &mut Frame<'_>, view: &mut View, area: Rect) {
    let Some(row) = view.selected() else { return };
    let title = format!(" {} ", columns::name(row, area.width.saturating_sub(4).max(2).into()));
    let lines: Vec<Line<'_>> = detail::lines(row)
        .into_iter()
        .map(|(heading, line)| Line::styled(line, if heading { BOLD } else { Style::new() }))
        .collect();
    let room = area.height.saturating_sub(1); // the border above
    view.scrolled = view.scrolled.min((lines.len() as u16).saturating_sub(room));
    let block = Block::new().borders(Borders::TOP).title(title);
    frame.render_widget(Paragraph::new(lines).block(block).scroll((view.scrolled, 0)), area);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{NoAnswer, Seen, Status};
    use crate::top::history::History;
    use crate::top::options::SortBy;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::{KeyCode, KeyEvent};
    use std::time::Duration;

    fn view() -> View {
        let mut view = View::new(SortBy::Name, Duration::from_secs(1));
        let mut history = History::default();
        let seen = |name: &str, status| Seen { name: name.into(), status };
        let vm = |up_ns| Box::new(Status { up_ns, ..Status::example() });
        history.rows(vec![seen("a", Ok(vm(1))), seen("b", Ok(vm(1)))]);
        let now = vec![seen("a", Ok(vm(1_000_000_001))), seen("b", Err(NoAnswer::Late))];
        view.update(history.rows(now));
        view
    }

    /// The screen's lines.
    fn drawn(view: &mut View, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("it needs nothing");
        terminal.draw(|frame| draw(frame, view)).expect("it needs nothing");
        let buffer = terminal.backend().buffer().clone();
        let cell = |x, y| buffer[(x, y)].symbol().to_string();
        (0..height).map(|y| (0..width).map(|x| cell(x, y)).collect::<String>().trim_end().into()).collect()
    }

    #[test]
    fn a_table_shows_each_vm_and_the_keys() {
        let lines = drawn(&mut view(), 80, 8);
        assert!(lines[0].starts_with("hv top  2 VMs: 0 running, 1 paused, 1 silent;"), "{lines:#?}");
        assert_eq!(lines[1], "NAME        STATE    CPU%  STEAL%   SPIN%   CALL/S   TRAP/S    HELD      OF");
        assert_eq!(lines[2], "a          paused     0.0     0.0     0.0        0        0      4K     64M");
        assert_eq!(lines[3], "b          silent       -       -       -        -        -      4K     64M");
        assert!(lines[7].starts_with("q quit  ↑↓ select  Enter details"), "{lines:#?}");
    }

    #[test]
    fn details_are_of_the_selected_vm_and_scroll_as_far_as_they_go() {
        let mut view = view();
        view.key(KeyEvent::from(KeyCode::Enter));
        let lines = drawn(&mut view, 80, 24);
        let shown = |text: &str| lines.iter().any(|line| line.contains(text));
        for text in [" a ──", "VCPU  STATE", "1     blocked", "0 block", "shadows  0 B for 0"] {
            assert!(shown(text), "`{text}` is not in {lines:#?}");
        }
        view.scrolled = u16::MAX;
        let lines = drawn(&mut view, 80, 12);
        assert!(lines[10].contains("0 block"), "{lines:#?}");
    }

    #[test]
    fn any_size_will_do() {
        for closely in [false, true] {
            let mut view = view();
            view.closely = closely;
            for (width, height) in [(1, 1), (3, 2), (20, 3), (40, 5), (300, 100)] {
                drawn(&mut view, width, height);
            }
        }
        let mut empty = View::new(SortBy::Cpu, Duration::from_secs(1));
        empty.closely = true;
        assert!(drawn(&mut empty, 60, 6)[1].starts_with("No VM is running"));
    }
}
