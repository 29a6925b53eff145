"""Where a checkpoint lies in the store, and what its metadata says.

The layout is the one Metaflow's users have: metaflow-checkpoint 0.2.14 lists and loads what is written here, and
the other way round (``tests/e2e/test_compatibility.py`` proves it). All keys are relative to the datastore's root::

    mf.checkpoints/checkpoints/artifacts/<flow>/<step>/<scope>/<identifier>/<stem>[/<file>...]
    mf.checkpoints/checkpoints/artifact_metadata/<flow>/<step>/<scope>/<identifier>/<stem>.metadata   and  latest
    mf.checkpoints/checkpoints/metadata/<flow>/<run>/<step>/<task>/<attempt>.<name>.<version>.metadata    and  latest
    mf.checkpoints/checkpoints/manifests/<flow>/<step>/<scope>/<identifier>/<stem>.json              ours alone
    mf.checkpoints/checkpoints/metadata/<flow>/<run>/<step>/<task>/<attempt>.start-<n>               ours alone
    mf.checkpoints/checkpoints/begun/<flow>/<run>/<step>/<task>/<attempt>   and  <attempt>.<n>       ours alone
    mf.checkpoints/checkpoints/shards/<flow>/<run>/<step>/<task>/<attempt>.<name>.<version>/<rank>   and  outcome   ours
    mf.checkpoints/checkpoints/deleting/<flow>/<step>/<scope>/<identifier>/<stem>.json               ours alone
    mf.checkpoints/checkpoints/gangs/<flow>/<run>/<step>/<task>/<attempt>   and  damaged/<hash>      ours alone

``<stem>`` is ``<pathspec hash>.<attempt>.<name>.<version>``.
The manifest stands in a folder of its own: the peer takes every name with four dots beside the metadata for metadata.

An attempt may begin more than once under one number. ``<attempt>.start-<n>`` says that somebody has begun it for the
n-th time, from 0 (``ranks/starts.py``); versions of that start count from ``n * START_STEP`` on. It stands beside the
metadata so that one listing shows both, and has two fields, which the peer passes over.

``begun`` (``<attempt>.<n>`` where it was begun before) names what an attempt was last about to commit,
``{"keys": [...]}``, newest first, of those saved with
``latest=True``. It is written before the first of them is committed, and ``latest`` before the next ``begun``: so what
is newer than ``latest`` stands in there, and a task's newest checkpoint is found without listing its history. Gangs,
in which many write side by side, have none.

``deleting`` says that a checkpoint is being removed (``retention/delete.py``).

A gang (``@parallel``) is one task here, its control task, and so are its checkpoints. ``ranks/agreement.py`` says what
``shards`` and ``gangs`` are for.
"""

from .keys import DEFAULT_NAME as DEFAULT_NAME
from .keys import LATEST as LATEST
from .keys import ROOT as ROOT
from .keys import KeyParts as KeyParts
from .keys import begun_attempt as begun_attempt
from .keys import begun_folder as begun_folder
from .keys import begun_key as begun_key
from .keys import check_name as check_name
from .keys import claim_key as claim_key
from .keys import claim_parts as claim_parts
from .keys import damaged_folder as damaged_folder
from .keys import damaged_key as damaged_key
from .keys import decision_key as decision_key
from .keys import deleting_folder as deleting_folder
from .keys import deleting_key as deleting_key
from .keys import is_in as is_in
from .keys import metadata_folder as metadata_folder
from .keys import metadata_name_parts as metadata_name_parts
from .keys import metadata_of_flow as metadata_of_flow
from .keys import name_text as name_text
from .keys import parse_key as parse_key
from .keys import shards_folder as shards_folder
from .keys import shards_of_task as shards_of_task
from .keys import short_hash as short_hash
from .reference import STORAGE_FORMATS as STORAGE_FORMATS
from .reference import generation as generation
from .reference import identity as identity
from .reference import is_latest as is_latest
from .reference import is_reference as is_reference
from .reference import is_shard as is_shard
from .reference import life as life
from .reference import order as order
from .reference import reference as reference
from .reference import whole as whole
from .task import COLLECTIVE_STEP as COLLECTIVE_STEP
from .task import GENERATION_STEP as GENERATION_STEP
from .task import GENERATIONS as GENERATIONS
from .task import START_STEP as START_STEP
from .task import TAG_PREFIX as TAG_PREFIX
from .task import TaskInfo as TaskInfo
from .task import foreach_identifier as foreach_identifier
from .task import pathspec_hash as pathspec_hash
from .task import scope_of as scope_of
from .task import step_identifier as step_identifier
