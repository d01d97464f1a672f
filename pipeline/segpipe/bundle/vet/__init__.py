"""The vetting of a bundle: a security boundary that can be audited alone.

**Promise.** Nothing of a bundle is instantiated, evaluated, imported or unpickled before each file of it was looked at
as data, and each class and function that its configs would reach is on a list of single objects (`names`), whatever
path leads to it, with arguments of the kinds that it may be given (`arguments`), or was admitted by its user, name by
name. What cannot be read without doubt is refused.

**Reading order.** `bundle_files` (what a refusal says; folders, links, names), `archives` (a zip file, read once and
strictly), `contents` (what each file is), `weights` (tensors; a pickle as opcodes), `arrays` (by their headers),
`reading` (strict JSON and YAML), `documents` (SHA256SUMS; schema and versions of the metadata; logging), `names` (the
list, and what a name leads to), `arguments` (the kind of each parameter), `syntax` (how MONAI reads a config),
`references` (where they lead, and how deep), `values` (whether an argument is of its kind), `configs` (all that a
config would run), `gate` (every check, and who is let through, on which terms), `grants` (what a name of ``--allow``
grants, in words). This package imports the standard library, yaml, jsonschema, packaging, `segpipe.errors` and
`segpipe.common` alone; MONAI, torch and numpy are loaded where a name is looked up in them. The proof is the gallery of
attacks in ``tests/bundle/test_bundle_attacks.py``, ``tests/bundle/test_two_readings.py`` and
``tests/bundle/test_arguments.py``.

**Not covered.** Which images are read, and what stock MONAI makes of metadata that a config made up
(docs/decisions/0006-what-a-bundle-may-run.md). Mistakes in MONAI, torch and their readers. Whoever can write to the
bundle's folder while it runs. What a user admits with ``--allow`` or ``--run-unvetted-code``. Who made the bundle: that
is what `segpipe.bundle.signing` is for.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
