"""How every command starts: its arguments by tyro, mistakes of the user's in one line."""

import os
import sys
import warnings

# TensorFlow's start-up chatter hides what a command says. This must precede its import.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tyro

from datasets.errors import InputError


def command(main, presets=None):
    """Run `main` from the command line.

    Args:
        main: Function whose arguments become the command line. With presets, it takes
            the chosen preset's name and its settings.
        presets: Dict of name -> (description, settings).

    A mistake of the user's, and a full disk or the like, ends the program with one line
    and status 2; Ctrl-C with status 130.
    """
    warnings.showwarning = _one_line
    try:
        if presets is None:
            tyro.cli(main)
        else:
            name = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
            settings = tyro.extras.overridable_config_cli(presets, description=main.__doc__)
            main(name, settings)
    except (InputError, OSError) as error:
        sys.exit(_fail(error))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


def _fail(error):
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def _one_line(message, category, filename, lineno, file=None, line=None):
    print(f"{'warning' if issubclass(category, UserWarning) else category.__name__}: {message}",
          file=sys.stderr)
