"""Run a study: configs x seeds, each with the same probes, and a table of what differs.

A study is a YAML file (docs/studies.md). What is finished is not run again, and what was interrupted resumes: start the
same command again. Writes table.md, results.json and accuracy.png to --out after each job.

Examples:
    bootmae study bootmae_mm::studies/cifar10/parts.yaml --data cifar10 --jobs 2
    bootmae study my_study.yaml --list
    bootmae study my_study.yaml --slurm="--partition=gpu --gres=gpu:1 --cpus-per-task=8 --time=1-0"
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext

from .arguments import cfg_options_argument, errors_in_one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('study', help='YAML file, or bootmae_mm::NAME for one that comes with the package')
    parser.add_argument('--out', help='folder for everything that is written (default: work_dirs/NAME_OF_FILE)')
    parser.add_argument('--data', help="folder of images (default: the file's)")
    parser.add_argument('--runs', nargs='+', metavar='NAME', help='only these runs, and what they need')
    parser.add_argument('--jobs', type=int, help='processes at once (default: one for each GPU, or one)')
    parser.add_argument('--threads', type=int, help='CPU threads of a process (default: its share of the cores)')
    parser.add_argument('--gpus-per-run', type=int, default=1, help='GPUs of a run (default: 1)')
    parser.add_argument('--list', action='store_true', help='only list the jobs, and which are done')
    parser.add_argument('--also', nargs='+', default=[], metavar='FILE', help='results.json of other machines, to add')
    parser.add_argument('--table', action='store_true', help='only write the table of what is done')
    parser.add_argument('--slurm', metavar='OPTIONS', help='submit the jobs as arrays, with these options for sbatch')
    parser.add_argument('--job', help='run only this job of --list; arrays of Slurm use it')
    cfg_options_argument(parser)


def command_again(args: argparse.Namespace) -> list[str]:
    """Arguments with which a process of an array runs one job of the same study."""
    given = [args.study]
    for name in ('out', 'data', 'threads', 'gpus_per_run'):
        value = getattr(args, name)
        given += [] if value is None else [f'--{name.replace("_", "-")}={value}']
    options = [f'{key}={value}' for key, value in args.cfg_options.items()]
    return [*given, *(['--cfg-options', *options] if options else [])]


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    with errors_in_one_line():
        from bootmae_mm.engine.recovery import lock
        from bootmae_mm.studies import collect, read_study, run_study
        from bootmae_mm.studies.results import done
        from bootmae_mm.studies.running import write_results
        from bootmae_mm.studies.slots import make_slots
        from bootmae_mm.studies.slurm import submit
        from bootmae_mm.validation import require

        study = read_study(args.study, args.out, args.data, args.cfg_options)
        for path in args.also:
            collect(study).add(path)  # a wrong file is told before the runs
        unknown = sorted(set(args.runs or []) - set(study.runs))
        require(not unknown, f'--runs: no run {unknown}; runs: {", ".join(study.runs)}')
        jobs = study.jobs(args.runs)
        if args.list:
            for job in jobs:
                print(f'{"done" if done(study, job) is not None else "-":5} {job.key}')
            return
        if args.job is not None:
            jobs = [job for job in jobs if job.key == args.job]
            require(jobs, f'no job {args.job!r}; `--list` shows those of the study')
        elif args.slurm is not None:
            numbers = submit(study, command_again(args), args.slurm, jobs)
            print('submitted: ' + ', '.join(numbers) if numbers else 'everything is done')
            return
        if not args.table:
            slots = make_slots(args.jobs, args.threads, args.gpus_per_run)
            # Jobs of an array run side by side; two whole studies in a folder would run the same jobs.
            held = lock(study.out) if args.job is None else nullcontext()
            try:
                with held:
                    run_study(study, slots, jobs)
            except KeyboardInterrupt:
                raise SystemExit('interrupted; to resume, run the same command again') from None
        print(write_results(study, args.also).markdown())
        print(f'\n{study.out}/table.md, results.json, accuracy.png')
