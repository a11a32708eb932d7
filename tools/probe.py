#!/usr/bin/env python3
"""The command `bootmae probe` as a script."""

from bootmae_mm.commands import run_command

if __name__ == '__main__':
    run_command('probe')
