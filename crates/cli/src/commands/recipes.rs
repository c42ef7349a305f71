//! `clasp recipes [NAME]`: the built-in recipes.

use anyhow::{Result, bail};
use clasp_run::recipe::{keys, names_near};
use clasp_tasks::finetune::FinetuneRecipe;
use clasp_tasks::registry::built_in_recipes;
use clasp_tasks::task::Task;
use clasp_tasks::{TaskKind, with_task};
use serde_json::{Map, Value, json};

use super::{print_result, print_text};
use crate::Outcome;
use crate::args::{GlobalOptions, RecipesArguments};

/// Runs the command.
pub fn run(common: &GlobalOptions, arguments: &RecipesArguments) -> Result<Outcome> {
    let commands = ["pretrain", "finetune"];
    let tasks = built_in_recipes();
    let lists = [&clasp_pretrain::recipe::BUILT_IN[..], &tasks[..]];
    let Some(name) = &arguments.name else {
        let mut text = String::new();
        let mut value = Vec::new();
        for (command, list) in commands.into_iter().zip(lists) {
            for (name, recipe) in list {
                let about = about(recipe);
                text.push_str(&format!("{command:<9} {name:<20} {about}\n"));
                value.push(json!({"command": command, "name": name, "about": about}));
            }
        }
        text.push_str(
            "print one: clasp recipes NAME; with all its keys: clasp recipes NAME --keys",
        );
        print_result(common.json, &value, &text)?;
        return Ok(Outcome::Done);
    };
    let mut all = lists.iter().flat_map(|list| list.iter());
    let Some((_, recipe)) = all.find(|(known, _)| known == name) else {
        let known: Vec<(&str, &str)> = lists.iter().flat_map(|list| list.iter()).copied().collect();
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        let near = names_near(name, &known);
        let near = near.map_or(String::new(), |near| {
            format!("\nhint: did you mean `{near}`?")
        });
        bail!("{name}: expected one of {}{near}", names.join(", "));
    };
    if !arguments.keys {
        match common.json {
            true => print_result(true, &toml::from_str::<Value>(recipe)?, "")?,
            false => print_text(recipe)?,
        }
        return Ok(Outcome::Done);
    }
    let keys = keys_of(name)?;
    let text: Vec<String> = keys
        .iter()
        .map(|(key, value)| format!("{key} = {value}"))
        .collect();
    let value: Map<String, Value> = { keys.into_iter() }
        .map(|(key, value)| (key, Value::from(value)))
        .collect();
    print_result(common.json, &value, &text.join("\n"))?;
    Ok(Outcome::Done)
}

/// The keys of a built-in recipe with their values as TOML.
fn keys_of(name: &str) -> Result<Vec<(String, String)>> {
    if clasp_pretrain::recipe::BUILT_IN
        .iter()
        .any(|(known, _)| *known == name)
    {
        return Ok(keys(&clasp_pretrain::PretrainRecipe::load(name, &[])?));
    }
    let Some(task) = TaskKind::of_recipe(name) else {
        bail!("{name}: expected a built-in recipe");
    };
    with_task!(task, T => {
        type Config = <T as Task>::Config;
        Ok(keys(&FinetuneRecipe::<Config>::load(name, &[])?))
    })
}

/// The first sentence of a recipe's comment.
fn about(recipe: &str) -> String {
    let lines = recipe.lines().map_while(|line| line.strip_prefix("# "));
    let mut words = Vec::new();
    for line in lines {
        words.push(line);
        if line.ends_with([':', '.']) {
            break;
        }
    }
    let comment = words.join(" ");
    let sentence = comment
        .split_once(". ")
        .map_or(&*comment, |(first, _)| first);
    sentence.trim_end_matches([':', '.']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_is_a_whole_sentence() {
        let recipe = "# Two lines, (a and\n# b):\n#   a command\n[model]\n";
        assert_eq!(about(recipe), "Two lines, (a and b)");
        assert_eq!(about("# One, lr = 8.5. Two.\n"), "One, lr = 8.5");
        assert_eq!(about("[model]\n"), "");
    }

    #[test]
    fn every_built_in_recipe_has_keys() {
        let tasks = built_in_recipes();
        let lists = [&clasp_pretrain::recipe::BUILT_IN[..], &tasks[..]];
        for (name, _) in lists.iter().flat_map(|list| list.iter()) {
            let keys = keys_of(name).unwrap();
            assert!(
                keys.iter().any(|(key, _)| key == "run.batch"),
                "{name}: {keys:?}"
            );
        }
    }

    /// Keys of pre-training with the values of two recipes, as docs/recipes.md has them.
    fn documented(recipe: &str) -> std::collections::BTreeMap<String, String> {
        let column = ["demo", "mini"].iter().position(|name| *name == recipe);
        let mut section = String::new();
        let mut keys = std::collections::BTreeMap::new();
        for line in include_str!("../../../../docs/recipes.md").lines() {
            if let Some(title) = line.strip_prefix("## ") {
                section = match title
                    .strip_prefix("`[")
                    .and_then(|title| title.strip_suffix("]`"))
                {
                    Some(name) => format!("{name}."),
                    None => String::new(),
                };
            }
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let key = { cells.get(1) }.and_then(|key| key.strip_prefix('`')?.strip_suffix('`'));
            if let (Some(key), 8) = (key, cells.len()) {
                let own = cells[4 + column.unwrap()];
                let value = if own.is_empty() { cells[3] } else { own };
                keys.insert(format!("{section}{key}"), plain(value));
            }
        }
        keys
    }

    /// A value without quotes, numbers in one spelling.
    fn plain(value: &str) -> String {
        let value = value.replace(['"', '`', ' '], "");
        match value.parse::<f64>() {
            Ok(number) => number.to_string(),
            Err(_) if value == "empty" => String::new(),
            Err(_) => value,
        }
    }

    #[test]
    fn the_document_has_every_key_of_pre_training_and_its_values() {
        for recipe in ["demo", "mini"] {
            let keys = keys_of(recipe).unwrap();
            let keys = keys.into_iter().map(|(key, value)| (key, plain(&value)));
            assert_eq!(documented(recipe), keys.collect(), "{recipe}");
        }
    }
}
