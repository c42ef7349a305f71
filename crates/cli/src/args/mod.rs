//! The command line: the arguments of each command, and nothing else. The work is in
//! `commands/<command>.rs`.
//!
//! To add a command: its arguments in a file here, a variant of the enum below, and its file in
//! `commands/`.

mod bench;
mod evaluation;
mod files;
mod global;
mod images;
mod serve;
mod tools;
mod training;
mod values;

use clap::{Parser, Subcommand};
use clap_complete::Shell;

pub use bench::{
    BenchArguments, BenchCoco, BenchCompare, BenchData, BenchDetection, BenchExchange, BenchIndex,
    BenchOptions, BenchParsing, BenchPretrain, BenchRank, BenchSearch, BenchWork,
};
pub use evaluation::{
    EmbedArguments, EvalArguments, MergeArguments, PredictArguments, ScoreArguments,
    SearchArguments,
};
pub use files::{
    ExportCommand, ExportHubArguments, ExportOnnxArguments, ExportPrecision,
    ExportSafetensorsArguments, HubFolder, ImportArguments, InspectArguments, OnnxOutput,
};
pub use global::GlobalOptions;
pub use images::{DataCommand, LabelAction, LabelArguments, LabelRunArguments, SynthArguments};
pub use serve::ServeArguments;
pub use tools::{DemoArguments, RecipesArguments, RunsArguments};
pub use training::{
    ClipCommand, ClipScoreArguments, ClipTrainArguments, FinetuneArguments, PretrainArguments,
    RankArguments,
};
pub use values::MatrixPrecision;

/// Human-centric visual pre-training: label, pre-train, fine-tune, evaluate.
#[derive(Parser, Debug)]
#[command(name = "clasp", version = env!("CLASP_VERSION"), max_term_width = 100)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub common: GlobalOptions,
    /// What to do.
    #[command(subcommand)]
    pub command: ClaspCommand,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum ClaspCommand {
    /// Run the whole pipeline on synthetic people and write a report
    #[command(after_help = "Examples:\n  clasp demo --out clasp-demo")]
    Demo(DemoArguments),
    /// Render synthetic people with ground truth for every task
    #[command(after_help = "Examples:\n  clasp synth --out synthetic --unlabeled 2000")]
    Synth(SynthArguments),
    /// Check datasets, pack images into tar shards, count images
    #[command(subcommand)]
    Data(DataCommand),
    /// Train a small CLIP, or measure the zero-shot accuracy of any CLIP
    #[command(subcommand)]
    Clip(ClipCommand),
    /// Make pseudo-labels with CLIP: part maps and attributes
    #[command(
        after_help = "Examples:\n  clasp label photos/ --clip openai/clip-vit-base-patch16 --out labels\n  clasp label photos/*.jpg --out labels\n  clasp label show labels photos/ --out labels.png"
    )]
    Label(LabelArguments),
    /// Pre-train a backbone with DINO, SOLIDER or CLASP
    #[command(
        after_help = "Examples:\n  clasp pretrain mini --set data.images=photos/ --set data.labels=labels --out runs/a\n  clasp pretrain --resume runs/a"
    )]
    Pretrain(PretrainArguments),
    /// Fine-tune a backbone with a task head on a labeled dataset
    #[command(
        after_help = "Examples:\n  clasp finetune reid reid-mini --data market/ --init runs/a --out runs/reid\n  clasp finetune reid --resume runs/reid"
    )]
    Finetune(FinetuneArguments),
    /// Evaluate a fine-tuned model or a frozen backbone with the published metric of a task
    #[command(
        after_help = "Examples:\n  clasp eval reid --data market/ --model runs/reid\n  clasp eval reid --data market/ --model runs/a --frozen"
    )]
    Eval(EvalArguments),
    /// Write the predictions of a fine-tuned model as JSON lines and pictures
    #[command(
        after_help = "Examples:\n  clasp predict pose photos/ --model runs/pose --out poses.jsonl --draw pictures/"
    )]
    Predict(PredictArguments),
    /// Find the gallery images nearest to each query, as JSON lines and a contact sheet
    #[command(
        after_help = "Examples:\n  clasp search --query wanted.jpg --gallery photos/ --model runs/reid"
    )]
    Search(SearchArguments),
    /// Serve models over HTTP: features, search, predictions, and pages for a browser
    #[command(
        after_help = "Examples:\n  clasp serve --model runs/reid --gallery photos/\n  clasp serve --model clasp-demo/run --gallery clasp-demo/people/unlabeled --labels clasp-demo/labels --runs clasp-demo"
    )]
    Serve(ServeArguments),
    /// Extract features of images into a .npy or .parquet file
    #[command(
        after_help = "Examples:\n  clasp embed photos/ --model runs/a --out features.npy\n  find photos -name '*.jpg' | clasp embed - --model runs/a --out features.parquet"
    )]
    Embed(EmbedArguments),
    /// Join the files of the parts of a corpus, as `embed --shard` and `predict --shard` write them
    #[command(
        after_help = "Examples:\n  clasp embed photos/ --model runs/a --shard 0/2 --out part-0.npy\n  clasp merge part-0.npy part-1.npy --out features.npy"
    )]
    Merge(MergeArguments),
    /// Convert a published checkpoint into a backbone file and list matched, missing and unexpected
    /// keys
    #[command(after_help = "Examples:\n  clasp import swin_tiny.pth -o backbone.safetensors")]
    Import(ImportArguments),
    /// Export a backbone as safetensors, as ONNX or as a folder of the hub
    #[command(subcommand)]
    Export(ExportCommand),
    /// Describe a file of clasp, a published checkpoint, an ONNX file or a CLIP folder
    #[command(after_help = "Examples:\n  clasp inspect runs/a")]
    Inspect(InspectArguments),
    /// Compute the metrics of `eval` for the predictions of any program
    #[command(
        after_help = "Examples:\n  clasp score detection --data city/ --predictions boxes.json"
    )]
    Score(ScoreArguments),
    /// List the built-in recipes, or print one
    #[command(after_help = "Examples:\n  clasp recipes\n  clasp recipes reid-mini --keys")]
    Recipes(RecipesArguments),
    /// List the runs below a folder with their state and best metric
    #[command(after_help = "Examples:\n  clasp runs runs/")]
    Runs(RunsArguments),
    /// Measure speed and memory on this machine
    #[command(after_help = "Examples:\n  clasp bench embed --batch 8")]
    Bench(BenchArguments),
    /// Print completions for a shell: bash, zsh, fish, elvish, powershell
    Completions {
        /// Shell
        shell: Shell,
    },
}

#[cfg(test)]
#[path = "../../tests/program/documents.rs"]
mod documents;

#[cfg(test)]
mod tests {
    use super::documents;
    use super::values::{colors, cosine, fraction, shard, size};
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_and_shards() {
        assert_eq!(size("256x128"), Ok([256, 128]));
        assert!(size("256").is_err() && size("0x5").is_err() && size("99999x1").is_err());
        assert_eq!((fraction("0.5"), cosine("-1")), (Ok(0.5), Ok(-1.0)));
        assert!(fraction("7").is_err() && fraction("-0.1").is_err() && cosine("nan").is_err());
        let threads = |text: &str| Cli::try_parse_from(["clasp", "demo", "--threads", text]);
        assert_eq!(threads("2").unwrap().common.threads, Some(2));
        for text in ["0", "300000", "many"] {
            let message = threads(text).unwrap_err().to_string();
            assert!(message.contains("--threads"), "{message}");
        }
        assert_eq!(shard("2/8"), Ok((2, 8)));
        assert!(shard("8/8").is_err() && shard("1").is_err());
        assert_eq!(colors("0.5, 1,0"), Ok([0.5, 1.0, 0.0]));
        assert!(colors("1,2").is_err() && colors("1,2,x").is_err() && colors("1,2,inf").is_err());
    }

    /// The subcommand that the words name, or what is unknown among them.
    fn check_mention(words: &[String]) -> Result<(), String> {
        let mut command = Cli::command();
        command.build();
        let mut command = &command;
        let mut operands = false;
        for word in words.iter().skip(1) {
            if let Some(option) = word.strip_prefix("--") {
                let name = option.split('=').next().unwrap_or_default();
                let name = name.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
                let known = command
                    .get_arguments()
                    .any(|argument| argument.get_long() == Some(name));
                if !known && !name.is_empty() && name != "help" && name != "version" {
                    return Err(format!("`clasp {}` has no --{name}", command.get_name()));
                }
                operands = true;
            } else if !operands && word.starts_with('{') {
                // A command that only the running program knows.
                return Ok(());
            } else if !operands {
                let names: Vec<&str> = word.split('|').collect();
                let is_name = names.iter().all(|name| {
                    !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '-')
                });
                let found: Option<Vec<_>> = names
                    .iter()
                    .map(|name| command.find_subcommand(name))
                    .collect();
                match found.as_deref() {
                    Some([first, ..]) => command = first,
                    _ if is_name && command.get_positionals().next().is_none() => {
                        return Err(format!(
                            "`clasp {}` has no command {word}",
                            command.get_name()
                        ));
                    }
                    _ => operands = true,
                }
            }
        }
        Ok(())
    }

    /// Reads a command of a document. Brackets mark what may be left out, TASK stands for a task.
    fn check_command(words: &[String]) -> Result<(), String> {
        let plain = words.iter().map(|word| match word.as_str() {
            "TASK" => "reid",
            "…" => "",
            word if word.contains('=') => word,
            word => word.trim_matches(['[', ']']),
        });
        match Cli::try_parse_from(plain.filter(|word| !word.is_empty())) {
            Err(error) if error.use_stderr() => Err(error.to_string()),
            _ => Ok(()),
        }
    }

    /// Examples below the help of a command and of those below it.
    fn examples(command: &clap::Command) -> Vec<documents::DocumentedCommand> {
        let help = command
            .get_after_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        let place = format!("clasp {} --help", command.get_name());
        let own = help
            .lines()
            .flat_map(|line| documents::pipeline(&place, line.trim()));
        own.chain(command.get_subcommands().flat_map(examples))
            .collect()
    }

    #[test]
    fn every_documented_command_exists() {
        let mut commands = examples(&Cli::command());
        let mut mentions = Vec::new();
        for (name, text) in documents::documents() {
            commands.extend(documents::commands(&name, &text));
            mentions.extend(documents::mentions(&name, &text));
        }
        for (name, text) in documents::files("recipes", "toml") {
            for (index, line) in text.lines().enumerate() {
                let place = format!("{name}:{}", index + 1);
                let comment = line.trim_start_matches(['#', ' ']);
                commands.extend(documents::pipeline(&place, comment));
            }
            mentions.extend(documents::mentions(&name, &text));
        }
        for (name, text) in documents::files("crates", "rs") {
            mentions.extend(documents::mentions(&name, &text));
        }
        assert!(commands.len() > 50 && mentions.len() > 100);
        let wrong: Vec<String> = commands
            .iter()
            .map(|command| (command, check_command(&command.words)))
            .chain(
                mentions
                    .iter()
                    .map(|mention| (mention, check_mention(&mention.words))),
            )
            .filter_map(|(command, checked)| {
                let error = checked.err()?;
                Some(format!(
                    "{}: {}\n  {error}",
                    command.place,
                    command.words.join(" ")
                ))
            })
            .collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn commands_that_do_not_exist_are_noticed() {
        let words = |text: &str| -> Vec<String> { text.split(' ').map(str::to_owned).collect() };
        for text in [
            "clasp eval --mix",
            "clasp bench rnak",
            "clasp labels",
            "clasp data pack|unpack",
        ] {
            assert!(check_mention(&words(text)).is_err(), "{text}");
        }
        for text in [
            "clasp eval TASK --prompt",
            "clasp data pack|stats",
            "clasp label --clip",
        ] {
            assert_eq!(check_mention(&words(text)), Ok(()), "{text}");
        }
        for text in [
            "clasp embed photos",
            "clasp eval pose --data D --model M --half",
        ] {
            assert!(check_command(&words(text)).is_err(), "{text}");
        }
        assert_eq!(
            check_command(&words("clasp finetune TASK [RECIPE] --data D [--out RUN]")),
            Ok(())
        );
    }
}
