//! `setup.sh` on typical machines, simulated by a folder of fake commands as the whole PATH.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The commands of a minimal Debian that the script uses.
const TOOLS: [&str; 8] = ["sh", "dirname", "sed", "sort", "head", "cut", "grep", "env"];
const NEW: &str = "1.96.0";
const OLD: &str = "1.85.0";

/// A machine with only the minimal system and Debian's package tools.
struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    /// `user`: the user's id; `installed`: the installed packages.
    fn new(user: u32, installed: &str) -> Self {
        let machine = Self { dir: tempfile::tempdir().unwrap() };
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for folder in ["source", "bin", "home"] {
            std::fs::create_dir(machine.path(folder)).unwrap();
        }
        for file in ["setup.sh", "Cargo.toml"] {
            std::fs::copy(root.join(file), machine.path("source").join(file)).unwrap();
        }
        for tool in TOOLS {
            let places = ["/usr/bin", "/bin"].map(|place| Path::new(place).join(tool));
            symlink(places.iter().find(|p| p.exists()).unwrap(), machine.path("bin").join(tool)).unwrap();
        }
        machine.command("id", &format!("echo {user}"));
        machine.logged("apt-get", "");
        let status = "printf 'install ok installed'";
        machine.command(
            "dpkg-query",
            &format!("for p; do :; done; case '{installed}' in all|*\"$p\"*) {status};; esac"),
        );
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Adds a command to the folder `place`.
    fn command_in(&self, place: &Path, name: &str, script: &str) {
        std::fs::create_dir_all(place).unwrap();
        let file = place.join(name);
        std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn command(&self, name: &str, script: &str) {
        self.command_in(&self.path("bin"), name, script);
    }

    /// A command that logs its arguments and then runs `script`.
    fn logged(&self, name: &str, script: &str) {
        let log = self.path("log");
        self.command(name, &format!("echo \"{name} $*\" >> '{}'\n{script}", log.display()));
    }

    fn sudo(self) -> Self {
        self.logged("sudo", "[ \"$1\" = -v ] || exec \"$@\"");
        self
    }

    /// A Rust in `place` whose cargo logs its arguments.
    fn rust(self, place: &str, version: &str) -> Self {
        let log = self.path("log");
        self.command_in(
            &self.path(place),
            "rustc",
            &format!("echo 'rustc {version} (0123456789 2026-01-01)'"),
        );
        let cargo = format!("[ \"$1\" = --version ] || echo \"cargo {version} $*\" >> '{}'", log.display());
        self.command_in(&self.path(place), "cargo", &cargo);
        self
    }

    /// Runs the script; returns whether it succeeded, its output, and the logged commands.
    fn setup(&self, arguments: &[&str]) -> (bool, String, String) {
        let output = Command::new(self.path("source").join("setup.sh"))
            .args(arguments)
            .env_clear()
            .env("PATH", self.path("bin"))
            .env("HOME", self.path("home"))
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        (output.status.success(), said, std::fs::read_to_string(self.path("log")).unwrap_or_default())
    }
}

#[test]
fn without_a_new_enough_rust_nothing_is_installed_and_the_fix_is_named() {
    for (machine, has) in [
        (Machine::new(0, ""), "this machine has none"),
        (Machine::new(0, "").rust("bin", OLD), "this machine has 1.85.0"),
        (Machine::new(0, "").rust("home/.cargo/bin", OLD), "this machine has 1.85.0"),
        (Machine::new(1000, "all").rust("bin", "1.9.0"), "this machine has 1.9.0"),
    ] {
        let (well, said, done) = machine.setup(&[]);
        assert!(!well && done.is_empty(), "{said}{done}");
        for part in
            [has, "Rust 1.92 or later", "sh.rustup.rs", "apt-get install cargo-web", "Nothing was installed"]
        {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}

#[test]
fn root_installs_missing_packages_and_builds() {
    let (well, said, done) = Machine::new(0, "pkg-config build-essential").rust("bin", NEW).setup(&[]);
    assert!(well, "{said}");
    let lines: Vec<&str> = done.lines().collect();
    let [update, install, build] = lines[..] else { panic!("{done}") };
    assert_eq!(update, "apt-get update -q");
    assert!(
        install.starts_with("apt-get install -q -y --no-install-recommends libgstreamer1.0-dev "),
        "{install}"
    );
    assert!(!install.contains("pkg-config") && !install.contains("plugins-bad1.0-dev"), "{install}");
    assert_eq!(build, "cargo 1.96.0 build --release --workspace --locked");
    assert!(said.contains("GST_PLUGIN_PATH"), "{said}");
}

#[test]
fn installed_packages_are_not_installed_again() {
    let (well, said, done) = Machine::new(1000, "all").rust("bin", NEW).setup(&[]);
    assert!(well && done == "cargo 1.96.0 build --release --workspace --locked\n", "{said}{done}");
}

#[test]
fn a_rust_that_rustup_has_just_installed_is_found() {
    for machine in [Machine::new(0, "all"), Machine::new(0, "all").rust("bin", OLD)] {
        let (well, said, done) = machine.rust("home/.cargo/bin", NEW).setup(&[]);
        assert!(well && done.starts_with("cargo 1.96.0 build"), "{said}{done}");
    }
}

#[test]
fn users_install_with_sudo_or_get_the_command_for_root() {
    let (well, said, done) = Machine::new(1000, "").sudo().rust("bin", NEW).setup(&[]);
    assert!(well && done.contains("sudo apt-get update -q\n"), "{said}{done}");
    assert!(done.contains("sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y"), "{done}");
    assert!(done.ends_with("cargo 1.96.0 build --release --workspace --locked\n"), "{done}");

    let refused = Machine::new(1000, "pkg-config").rust("bin", NEW);
    refused.command("sudo", "exit 1");
    for machine in [Machine::new(1000, "pkg-config").rust("bin", NEW), refused] {
        let (well, said, done) = machine.setup(&[]);
        assert!(!well && done.is_empty(), "{said}{done}");
        let line = said.lines().find(|l| l.contains("apt-get install")).unwrap();
        assert!(line.starts_with(
            "    apt-get update && apt-get install -y --no-install-recommends build-essential "
        ));
        assert!(line.contains(" libgstreamer1.0-dev ") && !line.contains("pkg-config"), "{line}");
        assert!(!said.contains("not found"), "{said}");
    }
}

#[test]
fn packages_are_installed_without_rust_if_only_they_are_requested() {
    let (well, said, done) = Machine::new(0, "").setup(&["--packages", "python3-gi"]);
    assert!(well && done.trim_end().ends_with(" python3-gi"), "{said}{done}");
    let (well, said, done) = Machine::new(0, "all").setup(&["--packages"]);
    assert!(well && said.is_empty() && done.is_empty(), "{said}{done}");
}
