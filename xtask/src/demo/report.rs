//! Reads what `cumulet --report` prints of a restore.

/// The numbers of a restore that the comparison shows.
#[derive(Debug, PartialEq, Eq)]
pub struct Restored {
    /// From the request until the machine could run, in milliseconds.
    pub total: String,
    /// Each phase and its milliseconds.
    pub phases: Vec<(String, String)>,
    /// Commits of the wiring.
    pub commits: u64,
    /// Calls of the hypervisor in all of them.
    pub calls: u64,
}

impl Restored {
    /// Reads a report.
    ///
    /// # Errors
    /// It is none.
    pub fn read(text: &str) -> Result<Self, String> {
        let missing = |what: &str| format!("the monitor reported no {what}:\n{text}");
        let lines = || text.lines().map(str::trim);
        let total = lines()
            .find(|line| line.starts_with("restored "))
            .and_then(|line| line.rsplit_once(" in "))
            .and_then(|(_, time)| time.strip_suffix(" ms"))
            .ok_or_else(|| missing("restore"))?;
        let phases = lines().filter_map(|line| {
            let (name, _) = line.split_once(" ms from ")?;
            let (name, time) = name.rsplit_once(' ')?;
            Some((name.trim().to_owned(), time.to_owned()))
        });
        let first = lines()
            .find_map(|line| line.strip_prefix("commit 1 (restore): ")?.split(' ').next()?.parse().ok())
            .ok_or_else(|| missing("commit"))?;
        let all = lines().find_map(|line| {
            let (commits, rest) = line.split_once(" commits in all: ")?;
            Some((commits.parse().ok()?, rest.split(' ').next()?.parse().ok()?))
        });
        let (commits, calls) = all.unwrap_or((1, first));
        Ok(Self { total: total.to_owned(), phases: phases.collect(), commits, calls })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONCE: &str = "restored /s, running in 3.314 ms\n  read state                   0.264 ms from 0.000 ms\n  \
        commit                       1.167 ms from 2.141 ms\n  memory zone mem0: cow\n\
        commit 1 (restore): 1 kernel calls, 1138.4 us after 899.9 us of staging\n";

    #[test]
    fn a_report_is_read() {
        let read = Restored::read(ONCE).unwrap();
        assert_eq!((read.total.as_str(), read.commits, read.calls), ("3.314", 1, 1));
        let phases = [("read state", "0.264"), ("commit", "1.167")];
        assert_eq!(read.phases, phases.map(|(name, time)| (name.to_owned(), time.to_owned())));
        let each = format!("{ONCE}  358 commits in all: 332 kernel calls, 19.566 ms\n");
        let read = Restored::read(&each).unwrap();
        assert_eq!((read.commits, read.calls), (358, 332));
        assert!(Restored::read("cumulet: no").is_err());
    }
}
