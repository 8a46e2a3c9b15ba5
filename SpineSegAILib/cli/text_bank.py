"""``spinesegai text-bank``: the sentences of a method, embedded by a text encoder."""

from __future__ import annotations

import argparse

from ..anatomy import SCHEMES, extended
from ..errors import ConfigError
from ..methods.catalog import make_config
from . import arguments
from .terminal import print_written, progress_bar

HELP = "Embed the sentences of a method, to train it with."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument(
        "--method",
        type=arguments.method,
        default="atm-net",
        metavar="NAME",
        help="method to make the bank for; default: atm-net",
    )
    parser.add_argument(
        "--scheme",
        type=arguments.choice(*SCHEMES),
        metavar="NAME",
        help="label scheme; default: the method's own",
    )
    arguments.add_new_structures(parser, "embed one more structure, as for “train --add-structure”; may be repeated")
    parser.add_argument(
        "--encoder",
        default="bio_clinicalbert",
        metavar="NAME|FOLDER",
        help="bio_clinicalbert, a Hugging Face name or folder, open_clip[:MODEL:WEIGHTS], or tiny_offline",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=arguments.output_file(".safetensors"),
        required=True,
        metavar="FILE",
        help="write the text bank: .safetensors",
    )
    arguments.add_quiet(parser)


def run(args: argparse.Namespace) -> None:
    """Embeds the sentences and writes the bank."""
    arguments.check_outputs({"--output": args.output}, {})
    config = make_config(
        args.method, scheme=extended(args.scheme or make_config(args.method).scheme, args.add_structure)
    )
    texts = config.text_prompts()
    if not texts:
        raise ConfigError(f"{args.method} does not need a text bank.", "Choose another method.")
    from ..methods.text.bank import TextBank, write_bank
    from ..methods.text.encoders import SentenceMeans, make_encoder

    with progress_bar(args.quiet) as report:
        report(0.0, "loading the text encoder")
        encoder = make_encoder(args.encoder, texts)
        if config.whole_sentences:
            encoder = SentenceMeans(encoder)
        write_bank(args.output, texts, encoder, config.scheme, report)
    if not args.quiet:
        bank = TextBank(args.output)
        print(f"{len(texts)} prompts of up to {bank.longest} tokens, width {bank.width}, by {bank.encoder}")
        print_written([args.output])
