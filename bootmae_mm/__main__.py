"""``python -m bootmae_mm`` is ``bootmae``."""

from bootmae_mm.commands import main

if __name__ == '__main__':
    main()
