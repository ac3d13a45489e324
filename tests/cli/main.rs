//! The program as a user runs it: its outputs and error messages.

mod models;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

fn program(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_autosam-video")).args(args).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Output of a call that must succeed.
fn good(args: &[&str]) -> String {
    let output = program(args);
    assert!(output.status.success(), "{args:?}: {}", text(&output));
    text(&output)
}

/// Output of a call that must fail with an `error:` line.
fn bad(args: &[&str]) -> String {
    let output = program(args);
    assert!(!output.status.success(), "{args:?} succeeded: {}", text(&output));
    let said = text(&output);
    assert!(said.contains("error: "), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

fn path(p: &Path) -> &str {
    p.to_str().unwrap()
}

fn write_image(p: &Path, w: u32, h: u32) {
    std::fs::create_dir_all(p.parent().unwrap()).unwrap();
    image::RgbImage::from_fn(w, h, |x, y| image::Rgb([(x * 3 % 200) as u8, (y * 5 % 200) as u8, 60]))
        .save(p)
        .unwrap();
}

#[test]
fn run_writes_a_clip_with_overlay_and_masks() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let clip = data.join("clip.webm");
    good(&[
        "synth",
        "--out",
        path(&data),
        "--sequences",
        "1",
        "--frames",
        "6",
        "--size",
        "128x96",
        "--clip",
        path(&clip),
    ]);
    assert!(clip.metadata().unwrap().len() > 500);
    let (overlaid, masks) = (dir.path().join("overlaid.webm"), dir.path().join("masks"));
    let said = good(&["run", "--input", path(&clip), "--output", path(&overlaid), "--masks", path(&masks)]);
    assert!(said.contains("6 frames in") && said.contains("gst-launch-1.0 filesrc"), "{said}");
    assert!(overlaid.metadata().unwrap().len() > 500);
    assert_eq!(std::fs::read_dir(&masks).unwrap().count(), 6);
    assert_eq!(image::open(masks.join("000003.png")).unwrap().into_luma8().dimensions(), (128, 96));
    let left: Vec<_> = [dir.path(), &data]
        .into_iter()
        .flat_map(|d| std::fs::read_dir(d).unwrap())
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.ends_with(".partial"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    // A labelled folder is compared with its masks.
    let said = good(&["run", "--input", path(&data.join("TrainDataset"))]);
    assert!(said.contains("mean Dice") || said.contains("without a polyp"), "{said}");
}

#[test]
fn frames_of_any_size_are_segmented() {
    let dir = tempfile::tempdir().unwrap();
    let frames = dir.path().join("frames");
    write_image(&frames.join("1.png"), 1, 1);
    write_image(&frames.join("2.png"), 4099, 7);
    write_image(&frames.join("10.png"), 30, 500);
    let (out, masks) = (dir.path().join("out"), dir.path().join("masks"));
    let said = good(&["run", "--input", path(&frames), "--output", path(&out), "--masks", path(&masks)]);
    assert!(said.contains("3 frames in"), "{said}");
    for (name, size) in [("1", (1, 1)), ("2", (4099, 7)), ("10", (30, 500))] {
        for folder in [&out, &masks] {
            assert_eq!(image::image_dimensions(folder.join(format!("{name}.png"))).unwrap(), size);
        }
    }
}

#[test]
fn unreadable_weights_are_reported_with_path_and_reason() {
    let dir = tempfile::tempdir().unwrap();
    write_image(&dir.path().join("frames/1.png"), 32, 32);
    let frames = dir.path().join("frames");
    let whole = autosam::model::SHIPPED;
    let cases: [(&str, &[u8], &str); 4] = [
        ("truncated.safetensors", &whole[..whole.len() / 3], "truncated"),
        ("text.safetensors", b"to whom it may concern", "not"),
        ("empty.safetensors", b"", "empty"),
        ("text.pth", b"to whom it may concern", "not"),
    ];
    for (name, bytes, reason) in cases {
        let file = dir.path().join(name);
        std::fs::write(&file, bytes).unwrap();
        for said in [
            bad(&["run", "--input", path(&frames), "--model", path(&file)]),
            bad(&["models", "verify", path(&file)]),
            bad(&["models", "show", path(&file)]),
        ] {
            assert!(said.contains(name) && said.contains(reason), "{said}");
        }
    }
    let said = bad(&["run", "--input", path(&frames), "--model", path(&dir.path().join("none.safetensors"))]);
    assert!(said.contains("none.safetensors") && said.contains("No such file"), "{said}");
}

#[test]
fn unusable_inputs_are_reported_with_path_and_reason() {
    let dir = tempfile::tempdir().unwrap();
    let said = bad(&["run", "--input", path(&dir.path().join("nothing.mp4"))]);
    assert!(said.contains("nothing.mp4") && said.matches("No such file").count() == 1, "{said}");
    let note = dir.path().join("note.mp4");
    std::fs::write(&note, "not a video").unwrap();
    assert!(bad(&["run", "--input", path(&note)]).contains("note.mp4"));
    let empty = dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    assert!(bad(&["run", "--input", path(&empty)]).contains("no known layout"));
    // A folder with a video is processed as an archive.
    assert!(bad(&["run", "--input", path(dir.path())]).contains("needs --output"));
    let frames = dir.path().join("frames");
    write_image(&frames.join("1.png"), 32, 32);
    std::fs::write(frames.join("2.png"), "not an image").unwrap();
    let masks = dir.path().join("masks");
    let said = bad(&["run", "--input", path(&frames), "--masks", path(&masks)]);
    assert!(said.contains("2.png: cannot read the image") && said.contains("1 frames in"), "{said}");
    assert!(masks.join("1.png").exists(), "the good image's mask was lost");
    let said = bad(&["run", "--input", path(&frames), "--output", path(&dir.path().join("x.avi"))]);
    assert!(said.contains(".mp4, .mkv or .webm"), "{said}");
    let odd = dir.path().join("odd");
    write_image(&odd.join("1.png"), 33, 31);
    let said = bad(&["run", "--input", path(&odd), "--output", path(&dir.path().join("x.mp4"))]);
    assert!(said.contains("even width and height, not 33x31"), "{said}");
    good(&["run", "--input", path(&odd), "--output", path(&dir.path().join("x.webm"))]);
}

#[test]
fn a_full_disk_is_reported_with_the_path() {
    let dir = tempfile::tempdir().unwrap();
    write_image(&dir.path().join("frames/1.png"), 32, 32);
    let masks = dir.path().join("masks");
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$0\" run --input \"$1\" --masks \"$2\""])
        .args([env!("CARGO_BIN_EXE_autosam-video"), path(&dir.path().join("frames")), path(&masks)])
        .output()
        .unwrap();
    let said = text(&output);
    assert!(!output.status.success() && said.contains("1.png: File too large"), "{said}");
    assert_eq!(std::fs::read_dir(&masks).unwrap().count(), 0);
}

#[test]
fn eval_prints_the_toolboxs_metrics_as_json() {
    let maps = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/goldens/vps_maps");
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("metrics.json");
    good(&[
        "eval",
        "--pred",
        path(&maps.join("pred")),
        "--gt",
        path(&maps.join("gt")),
        "--json",
        path(&json),
    ]);
    let read =
        |p: &Path| -> serde_json::Value { serde_json::from_slice(&std::fs::read(p).unwrap()).unwrap() };
    let (ours, golden) = (read(&json), read(&maps.parent().unwrap().join("vps_metrics_expected.json")));
    assert_eq!(ours["frames"], 20);
    for (key, value) in golden["dataset"].as_object().unwrap() {
        match value.as_f64() {
            Some(v) => assert!((ours["metrics"][key].as_f64().unwrap() - v).abs() < 1e-6, "{key}"),
            None => assert!(ours["metrics"][key].is_null(), "{key}"),
        }
    }
    let said = bad(&["eval", "--pred", path(dir.path()), "--gt", path(&maps.join("gt"))]);
    assert!(said.contains(path(dir.path())), "{said}");
}

#[test]
fn eval_measures_the_model_on_a_data_set() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    good(&[
        "synth",
        "--out",
        path(&data),
        "--sequences",
        "1",
        "--frames",
        "5",
        "--size",
        "96x96",
        "--split",
        "TestEasyDataset/Unseen",
    ]);
    let json = dir.path().join("metrics.json");
    let said = good(&["eval", "--sunseg", path(&data), "--json", path(&json)]);
    assert!(said.contains("not found") && said.contains("TestHardDataset/Unseen"), "{said}");
    let metrics: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!((metrics["frames"].as_u64(), metrics["splits"].as_object().unwrap().len()), (Some(3), 1));
    assert!(metrics["metrics"]["MAE"].as_f64().is_some_and(|v| (0.0..=1.0).contains(&v)));
    assert_eq!(metrics["sequences"].as_array().unwrap().len(), 1);
    assert_eq!(metrics["live"]["frames_per_second"], 25.0);

    // All modes that need no further weights, in one table, and the report.
    let report = dir.path().join("report");
    let said = good(&["eval", "--sunseg", path(&data), "--mode", "all", "--report", path(&report)]);
    let modes =
        ["autosam", "gt-point", "gt-box", "gt-mask", "autosam-as-mask-prompt", "no-prompt", "random-prompt"];
    for mode in modes {
        assert!(said.contains(&format!("| TestEasyDataset/Unseen, {mode} | 3 |")), "{said}");
    }
    let page = std::fs::read_to_string(report.join("report.html")).unwrap();
    assert_eq!(page.matches("data:image/png;base64,").count(), modes.len());
    assert!(page.contains("data:image/svg+xml;base64,") && page.contains("Published"));
    assert!(std::fs::read_to_string(report.join("report.md")).unwrap().contains("polyps found"));
    let said = bad(&["eval", "--sunseg", path(&data), "--mode", "lightweight"]);
    assert!(said.contains("--stage lightweight"), "{said}");

    let said = good(&["data", "check", path(&data)]);
    assert!(said.contains("| 1 | 5 |") && said.contains("| 96x96 |"), "{said}");
    let frame =
        std::fs::read_dir(data.join("TestEasyDataset/Unseen/Frame")).unwrap().next().unwrap().unwrap().path();
    let frame = std::fs::read_dir(frame).unwrap().next().unwrap().unwrap().path();
    std::fs::write(&frame, b"cut off").unwrap();
    assert!(good(&["data", "check", path(&data)]).contains(path(&frame)));
    assert!(bad(&["data", "check", "--strict", path(&data)]).contains("--strict"));
    let said = good(&["eval", "--sunseg", path(&data)]);
    assert!(said.contains("left out") && said.contains("2 frames"), "{said}");
}

#[test]
fn eval_counts_false_alarms_of_polyp_free_sequences_and_shows_each() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("SUN-Negative");
    for (case, frames) in [("case1", 6), ("case2", 3)] {
        (0..frames).for_each(|i| write_image(&data.join(case).join(format!("{i:04}.png")), 96, 80));
    }
    let (json, report) = (dir.path().join("metrics.json"), dir.path().join("report"));
    // With minmax every map has an overlay: one alarm of 0.6 s, one of 0.3 s.
    let stretched =
        ["--mask-mode", "minmax", "--rate", "10", "--json", path(&json), "--report", path(&report)];
    let said = good(&[&["eval", "--data", path(&data)][..], &stretched].concat());
    assert!(said.contains("polyp-free video: 2 sequences, 9 frames"), "{said}");
    let metrics: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let found = &metrics["polyp_free_video"];
    assert_eq!((found["frames"].as_u64(), found["frames_per_second"].as_f64()), (Some(9), Some(10.0)));
    let each = &found["each_frame"];
    assert_eq!(each["frames_with_overlay"], 1.0, "{found}");
    let counts = |kind: &str| -> Vec<u64> {
        let by_duration = found[kind]["by_duration"].as_array().unwrap();
        by_duration.iter().map(|d| d["alarms"].as_u64().unwrap()).collect()
    };
    assert_eq!(counts("each_frame"), [2, 1, 0]);
    let rate = each["by_duration"][0]["per_minute"].as_f64().unwrap();
    assert!((rate - 2.0 / (0.9 / 60.0)).abs() < 1e-6, "{rate}");
    // The filter removes alarms and adds none; the remaining ones have a contact sheet.
    let live = counts("live_filter");
    assert!(live.iter().zip([2, 1, 0]).all(|(live, each)| *live <= each), "{found}");
    assert_eq!(found["live_filter"]["frames_with_overlay"].as_f64() > Some(0.0), live[0] > 0);
    assert_eq!(report.join("live-alarms-1-0.png").exists(), live[0] > 0);
    assert!(image::open(report.join("alarms-1-0.png")).unwrap().width() > 1000);
    let page = std::fs::read_to_string(report.join("report.md")).unwrap();
    assert!(page.contains("1 to 2 of 2") && page.contains("| through the live filter |"), "{page}");
}

#[test]
fn training_reports_missing_data_and_unknown_keys() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    assert!(bad(&["train", "--out", path(&out)]).contains("nothing to train on"));
    let said = bad(&["train", "--sunseg", path(dir.path()), "--out", path(&out)]);
    assert!(said.contains("TrainDataset") && said.contains("Frame/ and GT/"), "{said}");
    let config = dir.path().join("c.toml");
    std::fs::write(&config, "stepz = 3\n").unwrap();
    let said = bad(&["train", "--config", path(&config), "--print-config"]);
    assert!(said.contains("c.toml") && said.contains("stepz"), "{said}");
}

#[test]
fn the_model_benchmark_prints_the_values_that_scripts_read() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("model.json");
    let said = good(&[
        "bench",
        "model",
        "--device",
        "cpu",
        "--precision",
        "f32",
        "--frames",
        "2",
        "--size",
        "320x240",
        "--json",
        path(&json),
    ]);
    assert!(said.contains("frames/s") && said.contains("encoder"), "{said}");
    let metrics: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    for name in ["frames_per_s", "p50_ms", "p99_ms", "peak_memory_mb"] {
        assert!(metrics[name].as_f64() > Some(0.0), "{name}: {metrics}");
    }
    assert!(metrics["fresh_pages_per_frame"].as_f64() >= Some(0.0), "{metrics}");
    assert!(metrics["allocations_per_inference"].as_f64() >= Some(0.0), "{metrics}");
    assert!(metrics["stages_ms"]["decoder"].as_f64() > Some(0.0), "{metrics}");
    assert!(bad(&["bench", "model", "--input", "/no/such/folder"]).contains("/no/such/folder"));
}

#[test]
fn the_monitor_suggests_a_page_if_there_is_no_window() {
    assert!(bad(&["monitor", "--input", "clip.mp4", "--no-window"]).contains("--http 127.0.0.1:8080"));
}

#[test]
fn an_unusable_token_file_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    let said = |more: &[&str]| {
        bad(&[&["monitor", "--input", "clip.mp4", "--no-window", "--token-file", path(&file)][..], more]
            .concat())
    };
    assert!(said(&[]).contains("--http"), "a token requires a page");
    let page = ["--http", "127.0.0.1:0"];
    assert!(said(&page).contains(path(&file)));
    std::fs::write(&file, "0123456789abcdef").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let text = said(&page);
    assert!(text.contains(path(&file)) && text.contains("chmod 600"), "{text}");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&file, "too short").unwrap();
    let text = said(&page);
    assert!(text.contains(path(&file)) && text.contains("openssl rand"), "{text}");
}

#[test]
fn settings_come_from_flags_environment_and_file_in_this_order() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("settings.toml");
    std::fs::write(&file, "[run]\nthreshold = 0.6\nmin-area = 0.01\n").unwrap();
    let printed = |environment: &[(&str, &str)]| {
        let output = Command::new(env!("CARGO_BIN_EXE_autosam-video"))
            .args(["config", "print", "--settings", path(&file)])
            .envs(environment.iter().copied())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    };
    let said = printed(&[]);
    assert!(said.contains("threshold = 0.6") && said.contains("min-area = 0.01"), "{said}");
    let said = printed(&[("AUTOSAM_RUN_THRESHOLD", "0.7")]);
    assert!(said.contains("threshold = 0.7") && said.contains("min-area = 0.01"), "{said}");
    assert!(good(&["config", "check", "--settings", path(&file)]).contains(": valid"));
    let schema: serde_json::Value = serde_json::from_str(&good(&["config", "schema"])).unwrap();
    assert!(schema["properties"]["train"]["properties"]["out"].is_object());
    std::fs::write(&file, "[run]\ntreshold = 0.6\n").unwrap();
    let said = bad(&["config", "check", "--settings", path(&file)]);
    assert!(said.contains("settings.toml") && said.contains("treshold"), "{said}");
    assert!(bad(&["models", "list", "--settings", "nowhere.toml"]).contains("nowhere.toml"));
}

#[test]
fn the_settings_file_s_default_path_follows_xdg_and_home() {
    let said = |config: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_autosam-video"));
        command.args(["config", "check"]).env_remove("AUTOSAM_SETTINGS");
        text(&command.env("HOME", "/nowhere").env("XDG_CONFIG_HOME", config).output().unwrap())
    };
    assert!(said("/elsewhere").contains("default path is /elsewhere/autosam-video/settings.toml\n"));
    for unusable in ["", "relative"] {
        assert!(said(unusable).contains("default path is /nowhere/.config/autosam-video/settings.toml\n"));
    }
}

#[test]
fn manual_pages_and_completions_are_generated() {
    let dir = tempfile::tempdir().unwrap();
    good(&["manual", path(dir.path())]);
    for page in ["autosam-video.1", "autosam-video-run.1", "autosam-video-models-fetch.1"] {
        assert!(std::fs::read_to_string(dir.path().join(page)).unwrap().contains(".TH"), "{page}");
    }
    assert!(good(&["completions", "bash"]).contains("--threshold"));
}
