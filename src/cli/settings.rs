//! Sources of a flag's value; the first that sets it wins:
//!
//! 1. the command line
//! 2. the environment: `AUTOSAM_RUN_THRESHOLD` is `--threshold` of `run`
//! 3. the settings file, one table per command, one key per flag: `[run]`, `threshold = 0.6`
//! 4. the built-in default
//!
//! The file's keys are the flags, so all commands share one schema. The file's values become the parser's defaults and are
//! validated like the flags.

use super::Cli;
use anyhow::{Context, bail};
use clap::{Arg, ArgAction, Command, CommandFactory, FromArgMatches};
use etcetera::base_strategy::{BaseStrategy, Xdg};
use serde_json::{Map, json};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Checks, prints or describes the settings file.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(clap::Subcommand)]
enum ConfigCommand {
    /// Checks the settings file
    Check,
    /// Prints the values in effect from file and environment, as a settings file
    Print,
    /// Prints the settings file's JSON Schema
    Schema,
}

/// Parses the command line on top of the environment and the settings file. Invalid flags end the program as usual with clap.
pub fn parse() -> anyhow::Result<Cli> {
    let args: Vec<OsString> = std::env::args_os().collect();
    let mut command = Cli::command();
    if let Some(file) = file(&args)? {
        command = with_file(command, &file)?;
    }
    let matches = with_environment(command).get_matches_from(args);
    Cli::from_arg_matches(&matches).map_err(Into::into)
}

pub fn run(args: Args, given: Option<PathBuf>) -> anyhow::Result<()> {
    match args.command {
        // Reached only if `parse` accepted the file.
        ConfigCommand::Check => match given.or_else(usual) {
            Some(file) => println!("{}: valid", file.display()),
            None => println!("no settings file found; the default path is {}", place().display()),
        },
        ConfigCommand::Print => {
            let mut command = Cli::command();
            if let Some(file) = given.or_else(usual) {
                command = with_file(command, &file)?;
            }
            print!("{}", effective(&with_environment(command))?);
        }
        ConfigCommand::Schema => println!("{:#}", schema(&Cli::command())),
    }
    Ok(())
}

/// The settings file: `--settings` (read here, because the parser needs the file's values as its defaults), otherwise
/// `AUTOSAM_SETTINGS`, otherwise the default path if it exists.
fn file(args: &[OsString]) -> anyhow::Result<Option<PathBuf>> {
    for (i, arg) in args.iter().enumerate() {
        let Some(text) = arg.to_str() else { continue };
        if text == "--" {
            break;
        }
        if text == "--settings" {
            return Ok(args.get(i + 1).map(PathBuf::from));
        }
        if let Some(path) = text.strip_prefix("--settings=") {
            return Ok(Some(path.into()));
        }
    }
    Ok(std::env::var_os("AUTOSAM_SETTINGS").map(PathBuf::from).or_else(usual))
}

/// The default path; relative, and therefore unused, if there is no home folder.
fn place() -> PathBuf {
    let dir = Xdg::new().map(|xdg| xdg.config_dir()).ok().filter(|dir| dir.is_absolute());
    dir.unwrap_or_default().join("autosam-video/settings.toml")
}

fn usual() -> Option<PathBuf> {
    Some(place()).filter(|p| p.is_absolute() && p.is_file())
}

/// Commands whose flags can be set by the file and the environment.
fn sections(command: &Command) -> Vec<String> {
    let about = ["config", "completions", "manual", "models", "data", "help"];
    command
        .get_subcommands()
        .map(|c| c.get_name().to_owned())
        .filter(|n| !about.contains(&n.as_str()))
        .collect()
}

/// A command's flags that take a value or are switches.
fn flags(command: &Command) -> impl Iterator<Item = (&Arg, &str)> {
    let settable =
        |a: &&Arg| !a.is_global_set() && !matches!(a.get_action(), ArgAction::Help | ArgAction::Version);
    command.get_arguments().filter(settable).filter_map(|a| Some((a, a.get_long()?)))
}

fn section<'a>(command: &'a Command, name: &str) -> anyhow::Result<&'a Command> {
    command.find_subcommand(name).with_context(|| format!("unknown command {name}"))
}

fn with_environment(mut command: Command) -> Command {
    for name in sections(&command) {
        command = command.mut_subcommand(&name, |c| {
            c.mut_args(|a| match a.get_long().map(str::to_owned) {
                Some(long) if !a.is_global_set() => {
                    let variable = format!("AUTOSAM_{name}_{long}").to_uppercase().replace('-', "_");
                    a.env(variable).hide_env(true)
                }
                _ => a,
            })
        });
    }
    command
}

/// Makes the file's values the parser's defaults.
fn with_file(mut command: Command, file: &Path) -> anyhow::Result<Command> {
    let shown = file.display();
    let text = std::fs::read_to_string(file).with_context(|| shown.to_string())?;
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| anyhow::anyhow!("{shown}: {e}"))?;
    let names = sections(&command);
    for (name, values) in table {
        if !names.contains(&name) {
            bail!("{shown}: unknown section [{name}]; expected one of {}", names.join(", "));
        }
        let toml::Value::Table(values) = values else { bail!("{shown}: {name} must be a table: [{name}]") };
        for (key, value) in values {
            let long = key.replace('_', "-");
            let found =
                flags(section(&command, &name)?).find(|(_, l)| *l == long).map(|(a, _)| a.get_id().clone());
            let Some(id) = found else {
                let known: Vec<_> = flags(section(&command, &name)?).map(|(_, l)| l).collect();
                bail!("{shown}: [{name}] has no key {key}; expected one of {}", known.join(", "));
            };
            let values = words(&value).with_context(|| format!("{shown}: [{name}] {key}"))?;
            command = command
                .mut_subcommand(&name, |c| c.mut_arg(id, |a| a.default_values(values).required(false)));
        }
        check(&command, &name).with_context(|| format!("{shown}: [{name}]"))?;
    }
    Ok(command)
}

/// A value as typed on the command line; a list becomes several values.
fn words(value: &toml::Value) -> anyhow::Result<Vec<String>> {
    Ok(match value {
        toml::Value::String(s) => vec![s.clone()],
        toml::Value::Integer(v) => vec![v.to_string()],
        toml::Value::Float(v) => vec![v.to_string()],
        toml::Value::Boolean(v) => vec![v.to_string()],
        toml::Value::Array(all) => all.iter().map(words).collect::<anyhow::Result<Vec<_>>>()?.concat(),
        other => bail!("a {} is not valid as a flag's value", other.type_str()),
    })
}

/// Validates the defaults of the command `name`. Missing required flags are not an error of the file.
fn check(command: &Command, name: &str) -> anyhow::Result<()> {
    use clap::error::ErrorKind::{InvalidValue, ValueValidation};
    match command.clone().try_get_matches_from(["autosam-video", name]) {
        Err(e) if matches!(e.kind(), InvalidValue | ValueValidation) => {
            let text = e.to_string();
            bail!("{}", text.lines().next().unwrap_or_default().trim_start_matches("error: "))
        }
        _ => Ok(()),
    }
}

fn effective(command: &Command) -> anyhow::Result<String> {
    let mut out = toml::Table::new();
    for name in sections(command) {
        let matches = command.clone().ignore_errors(true).try_get_matches_from(["autosam-video", &name])?;
        let Some((_, matches)) = matches.subcommand() else { continue };
        let mut table = toml::Table::new();
        for (arg, long) in flags(section(command, &name)?) {
            let Ok(Some(raw)) = matches.try_get_raw(arg.get_id().as_str()) else { continue };
            let mut values: Vec<toml::Value> = raw.map(|v| literal(&v.to_string_lossy())).collect();
            let value = match arg.get_action() {
                ArgAction::Append => toml::Value::Array(values),
                _ if values.len() == 1 => values.swap_remove(0),
                _ => continue,
            };
            table.insert(long.to_owned(), value);
        }
        out.insert(name, toml::Value::Table(table));
    }
    Ok(toml::to_string(&out)?)
}

fn literal(text: &str) -> toml::Value {
    if let Ok(v) = text.parse::<i64>() {
        return toml::Value::Integer(v);
    }
    match (text.parse::<f64>(), text.parse::<bool>()) {
        (Ok(v), _) if v.is_finite() => toml::Value::Float(v),
        (_, Ok(v)) => toml::Value::Boolean(v),
        _ => toml::Value::String(text.to_owned()),
    }
}

fn schema(command: &Command) -> serde_json::Value {
    let mut properties = Map::new();
    for name in sections(command) {
        let Ok(sub) = section(command, &name) else { continue };
        let mut keys = Map::new();
        for (arg, long) in flags(sub) {
            let possible: Vec<_> =
                arg.get_possible_values().iter().map(|v| v.get_name().to_owned()).collect();
            let one = match arg.get_action() {
                ArgAction::SetTrue => json!({"type": "boolean"}),
                _ if !possible.is_empty() => json!({"enum": possible}),
                _ => json!({"type": ["string", "number"]}),
            };
            let mut key = match arg.get_action() {
                ArgAction::Append => json!({"type": "array", "items": one}),
                _ => one,
            };
            if let (Some(help), Some(key)) = (arg.get_help(), key.as_object_mut()) {
                key.insert("description".into(), json!(help.to_string()));
            }
            keys.insert(long.to_owned(), key);
        }
        properties.insert(name, json!({"type": "object", "properties": keys, "additionalProperties": false}));
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "autosam-video settings",
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str) -> anyhow::Result<Command> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("settings.toml");
        std::fs::write(&file, text)?;
        with_file(Cli::command(), &file)
    }

    #[test]
    fn command_definitions_pass_claps_checks() {
        with_environment(Cli::command()).debug_assert();
    }

    #[test]
    fn flags_override_the_file_s_values() {
        let command = with("[run]\nthreshold = 0.75\nmask_mode = \"minmax\"\nredo = true\n").unwrap();
        let threshold = |args: &[&str]| {
            let matches = command.clone().try_get_matches_from(args).unwrap();
            let run = matches.subcommand().unwrap().1;
            assert!(run.get_flag("redo"));
            *run.get_one::<f32>("threshold").unwrap()
        };
        assert_eq!(threshold(&["a", "run", "--input", "x"]), 0.75);
        assert_eq!(threshold(&["a", "run", "--input", "x", "--threshold", "0.25"]), 0.25);
        let printed = effective(&command).unwrap();
        assert!(
            printed.contains("threshold = 0.75") && printed.contains("mask-mode = \"minmax\""),
            "{printed}"
        );
        // The printed text is a valid settings file.
        assert_eq!(effective(&with(&printed).unwrap()).unwrap(), printed);
    }

    #[test]
    fn unknown_keys_and_invalid_values_are_reported_by_name() {
        let said = |text: &str| format!("{:#}", with(text).err().unwrap());
        assert!(said("[run]\ntreshold = 1").contains("[run] has no key treshold; expected one of input"));
        assert!(said("[runn]\n").contains("unknown section [runn]; expected one of run"));
        assert!(said("[run]\nthreshold = 7").contains("not between 0 and 1"));
        assert!(said("[run]\noverlay = \"pink\"").contains("pink"));
        assert!(said("run = 3").contains("[run]"));
        assert!(said("[run").contains("settings.toml"));
    }

    #[test]
    fn the_schema_contains_switches_and_lists() {
        let schema = schema(&Cli::command());
        assert_eq!(schema["properties"]["run"]["properties"]["redo"]["type"], "boolean");
        assert!(schema["properties"]["train"]["properties"]["set"]["items"].is_object());
    }
}
