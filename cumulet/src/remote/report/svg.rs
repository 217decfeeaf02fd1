//! The report as a timeline: a bar for each phase on an axis of milliseconds, and below it what the commits did. The
//! file stands alone, and is legible on light and on dark ground.

use std::fmt::Write;

use api_client::wire::{ReportPhase, RestoreReport, ZoneReport};

use super::{milliseconds, operations, title, wiring};

/// The picture, and where in it the axis begins and ends.
const WIDTH: f64 = 960.0;
const LEFT: f64 = 200.0;
const RIGHT: f64 = 850.0;
/// Height of a line, and of a bar in it.
const LINE: f64 = 24.0;
const BAR: f64 = 14.0;
/// First line of the bars.
const TOP: f64 = 84.0;

/// Plain rules, without variables: not only browsers show such pictures.
const STYLE: &str = "\
    text { font: 13px system-ui, 'DejaVu Sans', sans-serif; fill: #1f2328 }\n\
    .title { font-size: 15px; font-weight: 600 } .number { font-variant-numeric: tabular-nums }\n\
    .ground { fill: #ffffff } .bar { fill: #0969da } .faint { fill: #59636e }\n\
    .grid { stroke: #d1d9e0 } .end { stroke: #cf222e }\n\
    @media (prefers-color-scheme: dark) {\n\
    text { fill: #f0f6fc } .ground { fill: #0d1117 } .bar { fill: #4493f8 } .faint { fill: #9198a1 }\n\
    .grid { stroke: #3d444d } .end { stroke: #f85149 }\n\
    }\n";

pub(super) fn of(report: &RestoreReport) -> String {
    let mut picture = Picture { text: String::new(), y: TOP };
    let ends = report.phases.iter().map(|phase| phase.start_ns.saturating_add(phase.ns));
    let axis = Axis::over(ends.chain([report.total_ns]).max().unwrap_or(0));
    let rows = report.phases.len();
    picture.grid(&axis, rows, report);
    for phase in &report.phases {
        picture.bar(&axis, phase);
    }
    picture.y += LINE * 1.6;
    picture.heading(&format!("wiring: {}", wiring(report)));
    for (name, count, ns) in operations(report) {
        picture.row(name, &format!("{count}"), &format!("{} ms", milliseconds(ns)));
    }
    picture.row("doorbells for later", &report.commit.doorbells_late.to_string(), "");
    picture.y += LINE * 0.6;
    picture.heading("memory");
    for ZoneReport { zone, mode, why, .. } in &report.memory {
        picture.row(zone, mode.name(), &why.as_ref().map_or_else(String::new, |why| format!("it {why}")));
    }
    let height = picture.y;
    let mut whole = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n\
         <rect class=\"ground\" width=\"{WIDTH}\" height=\"{height}\"/>\n",
        title = escaped(&title(report)),
    );
    whole += &picture.text;
    whole += "</svg>\n";
    whole
}

/// From nanoseconds to places in the picture.
struct Axis {
    end_ns: u64,
    /// Nanoseconds from one mark to the next.
    step_ns: u64,
}

impl Axis {
    fn over(ns: u64) -> Self {
        // A time that no picture could show is one that no restore takes.
        let ns = ns.clamp(1_000, 1_000_000_000_000_000);
        let mut step_ns = 100;
        // Some four to eight of them.
        while ns / step_ns > 8 {
            step_ns = next_step(step_ns);
        }
        Self { end_ns: ns.div_ceil(step_ns) * step_ns, step_ns }
    }

    fn x(&self, ns: u64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a place in a picture")]
        let part = ns.min(self.end_ns) as f64 / self.end_ns as f64;
        LEFT + part * (RIGHT - LEFT)
    }

    fn marks(&self) -> impl Iterator<Item = u64> {
        (0..=self.end_ns / self.step_ns).map(|mark| mark * self.step_ns)
    }
}

/// 1, 2, 5, 10, 20, 50 and so on.
fn next_step(step: u64) -> u64 {
    let mut power = 1;
    while step / power >= 10 {
        power *= 10;
    }
    match step / power {
        1 => 2 * power,
        2 => 5 * power,
        _ => 10 * power,
    }
}

struct Picture {
    text: String,
    y: f64,
}

impl Picture {
    fn put(&mut self, arguments: std::fmt::Arguments<'_>) {
        // A string takes whatever is written to it.
        let _ = writeln!(self.text, "{arguments}");
    }

    fn text(&mut self, x: f64, class: &str, anchor: &str, text: &str) {
        let (y, text) = (self.y, escaped(text));
        self.put(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\" text-anchor=\"{anchor}\">{text}</text>"
        ));
    }

    /// Title, marks of the axis, and where the restore was over.
    fn grid(&mut self, axis: &Axis, rows: usize, report: &RestoreReport) {
        let top = self.y;
        self.y = 30.0;
        self.text(16.0, "title", "start", &title(report));
        self.y = 64.0;
        #[expect(clippy::cast_precision_loss, reason = "a number of lines")]
        let bottom = top + rows as f64 * LINE;
        for mark in axis.marks() {
            let x = axis.x(mark);
            self.put(format_args!(
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"72\" y2=\"{bottom:.1}\"/>"
            ));
            self.text(x, "faint number", "middle", &mark_text(mark, axis.step_ns));
        }
        self.text(LEFT - 16.0, "faint", "end", "milliseconds");
        let x = axis.x(report.total_ns);
        self.put(format_args!(
            "<line class=\"end\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"72\" y2=\"{bottom:.1}\" stroke-dasharray=\"4 3\"/>"
        ));
        self.y = top;
    }

    fn bar(&mut self, axis: &Axis, phase: &ReportPhase) {
        let ReportPhase { name, start_ns, ns } = phase;
        let (from, to) = (axis.x(*start_ns), axis.x(start_ns.saturating_add(*ns)));
        let (y, width) = (self.y + 5.0, (to - from).max(1.0));
        self.put(format_args!(
            "<rect class=\"bar\" x=\"{from:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"2\"/>"
        ));
        self.y += LINE - 7.0;
        self.text(LEFT - 16.0, "", "end", name);
        self.text(from + width + 6.0, "number", "start", &milliseconds(*ns));
        self.y += 7.0;
    }

    fn heading(&mut self, text: &str) {
        self.text(16.0, "title", "start", text);
        self.y += LINE;
    }

    fn row(&mut self, name: &str, first: &str, second: &str) {
        self.text(LEFT - 16.0, "", "end", name);
        self.text(LEFT, "number", "start", first);
        self.text(LEFT + 130.0, "number", "start", second);
        self.y += LINE;
    }
}

/// A mark of the axis, with as many digits as tell one from the next.
fn mark_text(ns: u64, step_ns: u64) -> String {
    let whole = milliseconds(ns);
    let digits = match step_ns {
        1_000_000.. => 0,
        100_000.. => 2,
        10_000.. => 3,
        _ => 4,
    };
    let (number, rest) = whole.split_once('.').unwrap_or((&whole, ""));
    match digits {
        0 => number.to_owned(),
        digits => format!("{number}.{}", rest.get(..digits - 1).unwrap_or(rest)),
    }
}

/// Text as XML has it. Characters that XML cannot have become a sign that something was there.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&apos;",
            '\t' | '\n' | '\r' => escaped.push(' '),
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            character if character.is_control() => escaped.push('\u{fffd}'),
            character => escaped.push(character),
        }
    }
    escaped
}
