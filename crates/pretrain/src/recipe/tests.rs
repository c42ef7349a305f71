use super::*;

fn error(text: &str, overrides: &[&str]) -> String {
    let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
    PretrainRecipe::parse(text, "r.toml", &overrides)
        .unwrap_err()
        .to_string()
}

#[test]
fn a_misspelled_key_is_named_with_the_right_one_and_its_line() {
    let text = "seed = 1\n[optimizer]\nwarmup_epoch = 3\n";
    let message = error(text, &[]);
    assert!(
        message.contains("line 3") && message.contains("`warmup_epoch`"),
        "{message}"
    );
    assert!(
        message.contains("hint: did you mean `warmup_epochs`?"),
        "{message}"
    );
    // A right key in the wrong place.
    let message = error("lr = 1e-3\n", &[]);
    assert!(
        message.contains("hint: `lr` is `optimizer.lr`"),
        "{message}"
    );
    let message = error("", &["model.expert=8"]);
    assert!(message.starts_with("--set model.expert=8"), "{message}");
    assert!(message.contains("did you mean `experts`?"), "{message}");
    assert!(error("", &["seed"]).contains("no `=`"));
    assert!(error("", &["seed.x=1"]).contains("--set seed.x=1"));
}

#[test]
fn a_value_of_another_type_is_an_error_and_auto_is_not() {
    let message = error("[optimizer]\nlr = \"fast\"\n", &[]);
    assert!(
        message.contains("\"auto\"") && message.contains("fast"),
        "{message}"
    );
    let recipe = PretrainRecipe::parse("[optimizer]\nlr = 1\n", "r", &[]).unwrap();
    assert_eq!(recipe.optimizer.lr, Auto::Value(1.0));
    let set = [
        "method=dino".to_owned(),
        "optimizer.lr=auto".to_owned(),
        "run.batch=64".to_owned(),
    ];
    let recipe = PretrainRecipe::parse("[optimizer]\nlr = 1\n", "r", &set).unwrap();
    assert_eq!(
        (recipe.method, recipe.optimizer.lr, recipe.run.batch),
        (Method::Dino, Auto::Auto, 64)
    );
}
