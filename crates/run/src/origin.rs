//! Provenance of a run, the comments above the recipe in `run.toml`: when it started, with which
//! command, by which build, on which data and device.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use clasp_data::text::shell_word;

static COMMIT: OnceLock<String> = OnceLock::new();

/// Sets the commit that the program was built from; the first call counts.
pub fn set_commit(commit: &str) {
    // A second call comes from the same program.
    let _ = COMMIT.set(commit.to_owned());
}

/// The comments above the recipe in `run.toml`.
#[derive(Clone, Debug)]
pub struct RunHeader<'a> {
    /// Command that ran the recipe, such as `pretrain` or `finetune reid`.
    pub command: &'a str,
    /// Version of clasp.
    pub version: &'a str,
    /// Seed of the recipe.
    pub seed: u64,
    /// Name of the device: `cpu`, `cuda:0`.
    pub device: &'a str,
    /// Images of an epoch.
    pub images: usize,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
    /// Steps of the run.
    pub steps: u64,
}

impl RunHeader<'_> {
    /// The text of `run.toml`: this header, then the resolved `recipe` as TOML.
    pub fn with_recipe(&self, recipe: &str) -> String {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        format!(
            "# The resolved recipe of this run of `clasp {}`.\n{}\
             # clasp {} · seed {} · {} {} · {cores} cores · device {}\n\
             # {} images · {} steps an epoch · {} steps\n\n{recipe}",
            self.command,
            lines(self.version),
            self.version,
            self.seed,
            std::env::consts::OS,
            std::env::consts::ARCH,
            self.device,
            self.images,
            self.steps_per_epoch,
            self.steps,
        )
    }
}

/// What the header of a `run.toml` records of its run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderFacts {
    /// Command that ran the recipe, such as `pretrain` or `finetune reid`.
    pub command: String,
    /// Steps of the run.
    pub steps: u64,
}

impl HeaderFacts {
    /// Reads the header that [`RunHeader::with_recipe`] wrote; none if `text` has no such header.
    pub fn read(text: &str) -> Option<Self> {
        let comments = || { text.lines() }.map_while(|line| line.strip_prefix("# "));
        let command = comments().find_map(|line| {
            let (_, quoted) = line.split_once("`clasp ")?;
            quoted.split_once("`.").map(|(command, _)| command)
        })?;
        let steps = comments().find_map(|line| {
            let (_, last) = line.rsplit_once(" · ")?;
            last.strip_suffix(" steps")?.parse().ok()
        })?;
        Some(Self {
            command: command.to_owned(),
            steps,
        })
    }
}

/// The `run.toml` of a run that is resumed with another recipe: `new`, in which the lines of `old` that say
/// how the run was started, and resumed before, stand above those of this process. None if the recipe
/// is the same.
pub fn resumed(old: &str, new: &str) -> Option<String> {
    let recipe = |text: &str| -> String {
        let lines = text
            .lines()
            .skip_while(|line| line.is_empty() || line.starts_with('#'));
        lines.collect::<Vec<_>>().join("\n")
    };
    if recipe(old) == recipe(new) {
        return None;
    }
    let is_start = |line: &&str| {
        let kinds = [STARTED, RESUMED, COMMAND];
        kinds.iter().any(|kind| line.starts_with(kind))
    };
    let header = old.lines().take_while(|line| line.starts_with('#'));
    let starts: String = header
        .filter(is_start)
        .map(|line| format!("{line}\n"))
        .collect();
    let (before, own) = new.split_once(STARTED)?;
    Some(format!("{before}{starts}{RESUMED}{own}"))
}

/// What begins the lines that [`lines`] makes.
const STARTED: &str = "# started ";
const COMMAND: &str = "# command: ";
/// The same instead of [`STARTED`] after a resume with another recipe.
const RESUMED: &str = "# resumed ";

/// Lines for the header of a `run.toml`, each after `# `: date, version and commit, command line.
pub fn lines(version: &str) -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH);
    let seconds = seconds.map_or(0, |since| since.as_secs());
    let commit = match COMMIT.get().map(String::as_str) {
        Some(commit) if !commit.is_empty() => format!(", commit {commit}"),
        _ => String::new(),
    };
    format!(
        "{STARTED}{} by clasp {version}{commit}\n{COMMAND}{}\n",
        date(seconds),
        command(std::env::args())
    )
}

/// A time in seconds since 1970 as `2026-11-29 18:51:07 UTC`.
pub fn date(seconds: u64) -> String {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    // Days since 1 March of year 0, in eras of 400 years (Howard Hinnant, "chrono-compatible
    // low-level date algorithms").
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = 400 * era + year + u64::from(month <= 2);
    let (hour, minute, second) = (time / 3600, time % 3600 / 60, time % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// A command line, quoted for a shell, on one line.
fn command(arguments: impl Iterator<Item = String>) -> String {
    let words: Vec<String> = arguments.map(|word| shell_word(&word)).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(date(1_795_978_267), "2026-11-29 18:51:07 UTC");
        assert_eq!(date(4_107_542_399), "2100-02-28 23:59:59 UTC");
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let header = RunHeader {
            command: "finetune reid",
            version: "1.2.3",
            seed: 7,
            device: "cpu",
            images: 100,
            steps_per_epoch: 25,
            steps: 500,
        };
        let text = header.with_recipe("seed = 7\n");
        let facts = HeaderFacts {
            command: "finetune reid".to_owned(),
            steps: 500,
        };
        assert_eq!(HeaderFacts::read(&text), Some(facts));
        assert_eq!(HeaderFacts::read("seed = 7\n"), None);
        assert!(text.contains(" · device cpu\n"), "{text}");
        assert!(text.ends_with("\n\nseed = 7\n"), "{text}");
    }

    #[test]
    fn a_resume_with_another_recipe_keeps_how_the_run_was_started() {
        let text = |steps: u64| {
            let header = RunHeader {
                command: "pretrain",
                version: "1.2.3",
                seed: 7,
                device: "cpu",
                images: 100,
                steps_per_epoch: 25,
                steps,
            };
            header.with_recipe(&format!("seed = 7\n\n[run]\nsteps = {steps}\n"))
        };
        assert_eq!(resumed(&text(2), &text(2)), None);
        let mut run = text(2);
        for steps in [4, 6] {
            run = resumed(&run, &text(steps)).unwrap();
            assert_eq!(HeaderFacts::read(&run).unwrap().steps, steps);
            assert!(
                run.ends_with(&format!("\n\n[run]\nsteps = {steps}\n")),
                "{run}"
            );
        }
        let count = |start: &str| run.lines().filter(|line| line.starts_with(start)).count();
        assert_eq!(
            [count(STARTED), count(RESUMED), count(COMMAND)],
            [1, 2, 3],
            "{run}"
        );
    }

    #[test]
    fn a_command_line_is_one_line_quoted_for_a_shell() {
        let arguments = ["clasp", "my recipe.toml", "--set", "a.b='x'", "", "n\nl"];
        let line = command(arguments.into_iter().map(str::to_owned));
        assert_eq!(
            line,
            r"clasp 'my recipe.toml' --set 'a.b='\''x'\''' '' 'n?l'"
        );
    }
}
