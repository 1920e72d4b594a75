"""Apache Beam's part of a command line: what `prepare.py` and `upscale_beam.py` do not know is Beam's."""

import argparse
import warnings

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from superres.errors import InputError


def pipeline_of(flags: list[str]) -> beam.Pipeline:
    """A pipeline with these options, which Beam would drop in silence where it does not know them.

    Raises:
        InputError: for options that Beam does not know or the runner refuses. Of runners elsewhere, the
            service may know more of them: there it is a warning.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, conflict_handler="resolve",
                                     exit_on_error=False)
    for options in PipelineOptions.__subclasses__():
        if "_add_argparse_args" in vars(options):
            options._add_argparse_args(parser)
    try:
        known, unknown = parser.parse_known_args(flags)
    except argparse.ArgumentError as error:
        raise InputError(str(error)) from None
    if unknown:
        text = f"{unknown[0]}: neither an option of this command nor one of Beam's"
        if (known.runner or "DirectRunner").endswith("DirectRunner"):
            raise InputError(text)
        warnings.warn(f"{text}; {known.runner} may know it", stacklevel=2)
    try:
        # No triggers here; but without this, Beam's DirectRunner would download Prism, of one worker process.
        return beam.Pipeline(options=PipelineOptions(flags, allow_unsafe_triggers=True))
    except (ValueError, ImportError) as error:  # the runner's, of its options
        raise InputError(str(error)) from None
