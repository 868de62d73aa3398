//! `sh [-v] [-c COMMAND | FILE]`: the shell. Runs a command, a file of them, or what is typed.
//!
//! `os::parse` says what a line can be. The shell's own commands are in [`Shell::built_in`]; `help` lists them.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use os::Error;
use os::edit::{Editor, Typed};
use os::io::{self, Lines, Opening, descriptor};
use os::parse::{self, Command, Pipeline};
use os::process::{self, Fork};

os::entry!(main);

const PROMPT: &str = "$ ";

/// Status of a command that is not there, as other shells give it.
const NO_SUCH_COMMAND: i32 = 127;

fn main() -> i32 {
    let mut shell = Shell::default();
    let arguments = os::arguments();
    let (shown, arguments) = match arguments {
        ["-v", rest @ ..] => (true, rest),
        all => (false, all),
    };
    match arguments {
        [] => shell.typed(),
        ["-c", command] => command.lines().for_each(|line| shell.line(line)),
        [file] => shell.file(file, shown),
        _ => {
            os::eprintln!("usage: sh [-v] [-c COMMAND | FILE]");
            return 2;
        }
    }
    shell.status
}

/// A pipeline that nobody waits for.
struct Job {
    number: usize,
    /// Its processes that still run.
    processes: Vec<u32>,
    text: String,
}

#[derive(Default)]
struct Shell {
    /// Of the last command.
    status: i32,
    jobs: Vec<Job>,
}

impl Shell {
    /// Runs what is typed on the console.
    fn typed(&mut self) {
        let (mut editor, mut screen) = (Editor::new(), String::from(PROMPT));
        let mut byte = [0];
        loop {
            os::print!("{}", core::mem::take(&mut screen));
            if io::read(descriptor::INPUT, &mut byte) != Ok(1) {
                return;
            }
            match editor.byte(byte[0], &mut screen) {
                Typed::Nothing => continue,
                Typed::End => {
                    os::println!(); // what comes next on the terminal is somebody else's
                    return;
                }
                Typed::GivenUp => {}
                Typed::Line(line) => {
                    os::print!("{}", core::mem::take(&mut screen));
                    self.line(&line);
                    self.tell_ended();
                }
            }
            screen.push_str(PROMPT);
        }
    }

    /// Runs the lines of a file; shows them first, if asked to.
    fn file(&mut self, name: &str, shown: bool) {
        let file = match io::open(name) {
            Ok(file) => file,
            Err(error) => {
                os::eprintln!("sh: {name}: {error}");
                self.status = NO_SUCH_COMMAND;
                return;
            }
        };
        // All of it, before the first command: a command must not find the file among its descriptors.
        let lines: Vec<String> = Lines::of(file).collect();
        io::close(file);
        for line in lines {
            if shown {
                os::println!("{PROMPT}{line}");
            }
            self.line(&line);
        }
    }

    fn line(&mut self, text: &str) {
        match parse::line(text, self.status) {
            Ok(pipelines) => {
                for (i, pipeline) in pipelines.iter().enumerate() {
                    // `$?` is what it is when a pipeline's turn has come.
                    let again = if i > 0 { parse::line(text, self.status).ok() } else { None };
                    self.pipeline(again.as_ref().map_or(pipeline, |all| &all[i]));
                }
            }
            Err(fault) => {
                os::eprintln!("sh: {fault}");
                self.status = 2;
            }
        }
    }

    fn pipeline(&mut self, pipeline: &Pipeline) {
        if let ([command], false) = (&pipeline.commands[..], pipeline.background)
            && self.built_in(command)
        {
            return;
        }
        self.reap(); // so that those that have ended do not count among the processes
        let processes = match start(&pipeline.commands) {
            Ok(processes) => processes,
            Err(error) => {
                os::eprintln!("sh: {error}");
                self.status = 1;
                return;
            }
        };
        if pipeline.background {
            let text: Vec<String> = pipeline.commands.iter().map(|command| command.words.join(" ")).collect();
            let number = self.jobs.last().map_or(1, |job| job.number + 1);
            os::println!("[{number}] {}", processes.last().copied().unwrap_or(0));
            self.jobs.push(Job { number, processes, text: text.join(" | ") });
            self.status = 0;
            return;
        }
        for process in processes {
            if let Ok((_, status)) = process::wait(Some(process)) {
                self.status = status;
            }
        }
    }

    /// Runs a command of the shell's own. Whether it was one.
    fn built_in(&mut self, command: &Command) -> bool {
        let words: Vec<&str> = command.words.iter().map(String::as_str).collect();
        let status = match words[..] {
            ["exit"] => process::exit(self.status),
            ["exit", status] => process::exit(status.parse().unwrap_or(2)),
            ["jobs"] => {
                self.reap();
                let running = self.jobs.iter().filter(|job| !job.processes.is_empty());
                running.for_each(|job| os::println!("[{}] {}", job.number, job.text));
                0
            }
            ["wait"] => {
                while process::wait(None).is_ok() {}
                self.jobs.clear();
                0
            }
            ["help"] => {
                os::println!("of the shell: exit [STATUS], jobs, wait, help; and what `ls` lists");
                os::println!("a | b, a; b, a &, a <file, a >file, a >>file, 'quoted', \"quoted\", \\c, $?");
                os::println!("`mount` shows where files can be written: /share is a folder of the host's");
                0
            }
            _ => return false,
        };
        self.status = status;
        true
    }

    /// Looks which jobs have ended.
    fn reap(&mut self) {
        while let Ok(Some((ended, _))) = process::wait_poll() {
            self.jobs.iter_mut().for_each(|job| job.processes.retain(|process| *process != ended));
        }
    }

    /// Says which jobs have ended.
    fn tell_ended(&mut self) {
        self.reap();
        let ended = self.jobs.iter().filter(|job| job.processes.is_empty());
        ended.for_each(|job| os::println!("[{}] ended: {}", job.number, job.text));
        self.jobs.retain(|job| !job.processes.is_empty());
    }
}

/// Starts the programs of a pipeline, each with its input from the one before. Gives their ids. If there cannot be all of
/// them, there are none.
fn start(commands: &[Command]) -> os::Result<Vec<u32>> {
    let mut processes = Vec::new();
    let mut input = None;
    for (i, command) in commands.iter().enumerate() {
        let more = i + 1 < commands.len();
        let started = start_one(command, input.take(), more);
        match started {
            Ok((process, output)) => {
                processes.push(process);
                input = output;
            }
            Err(error) => {
                for process in processes {
                    let _ = process::kill(process); // it may have ended by itself
                    let _ = process::wait(Some(process));
                }
                return Err(error);
            }
        }
    }
    Ok(processes)
}

/// Starts one program. Closes `input`; gives the pipe that it writes to, if it is to write to one.
fn start_one(command: &Command, input: Option<u32>, piped: bool) -> os::Result<(u32, Option<u32>)> {
    let pipe = if piped { io::pipe().map(Some) } else { Ok(None) };
    let forked = pipe.and_then(|pipe| {
        process::fork().map(|forked| (pipe, forked)).inspect_err(|_| {
            if let Some((read, write)) = pipe {
                io::close(read);
                io::close(write);
            }
        })
    });
    let forked = forked.inspect_err(|_| input.into_iter().for_each(io::close));
    match forked? {
        (pipe, Fork::Child) => become_program(command, input, pipe),
        (pipe, Fork::Parent(process)) => {
            input.into_iter().for_each(io::close);
            if let Some((_, write)) = pipe {
                io::close(write);
            }
            Ok((process, pipe.map(|(read, _)| read)))
        }
    }
}

/// In the child: puts its descriptors in place and becomes the program.
fn become_program(command: &Command, input: Option<u32>, pipe: Option<(u32, u32)>) -> ! {
    if let Some(input) = input {
        let _ = io::duplicate(input, descriptor::INPUT); // both are good descriptors, here and below
        io::close(input);
    }
    if let Some((read, write)) = pipe {
        let _ = io::duplicate(write, descriptor::OUTPUT);
        io::close(write);
        io::close(read);
    }
    let words: Vec<&str> = command.words.iter().map(String::as_str).collect();
    if let Err((file, error)) = redirect(command) {
        os::eprintln!("sh: {file}: {error}");
        process::exit(1);
    }
    let error = process::exec(words[0], &words);
    let why = if error == Error::NotFound { "no such command".to_string() } else { error.to_string() };
    os::eprintln!("sh: {}: {why}", words[0]);
    process::exit(NO_SUCH_COMMAND)
}

/// Opens the files that a command is to read and write, in its process. If one cannot be opened, which, and why.
fn redirect(command: &Command) -> Result<(), (&str, Error)> {
    let put = |file: &str, how, place| {
        let opened = io::open_to(file, how)?;
        io::duplicate(opened, place)?;
        io::close(opened);
        Ok(())
    };
    if let Some(file) = &command.input {
        put(file, Opening::READ, descriptor::INPUT).map_err(|error| (file.as_str(), error))?;
    }
    if let Some((file, at_end)) = &command.output {
        let how = if *at_end { Opening::APPEND } else { Opening::TRUNCATE };
        let how = Opening::WRITE | Opening::CREATE | how;
        put(file, how, descriptor::OUTPUT).map_err(|error| (file.as_str(), error))?;
    }
    Ok(())
}
