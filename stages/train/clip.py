"""Trains a CLIP model on an export, at a fixed scale, so that trainings differ by their subsets."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.keys import redacted
from clipmill.metadata.storage import Storage
from clipmill.pipeline import own_code
from clipmill.pipeline.dataset import Context, Inputs
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import (
    Between0And1,
    DatasetStage,
    Decay,
    Gigabytes,
    Gpus,
    NonEmpty,
    OneUp,
    Rate,
    Resources,
    Share,
    ZeroUp,
    later,
    location,
)
from clipmill.stages.clip.losses import Declared, declared_by, digest_of
from clipmill.stages.clip.open_clip_config import check_patches
from clipmill.stages.clip.scales import SCALES, Scale
from clipmill.stages.clip.start import check_start, start_of
from clipmill.stages.clip.training import CURVE, Work, probed, train_alone, train_rank
from clipmill.stages.ops.tables.exports import numbered, summary_of

OF_NETWORKS = {  # settings that nano, our own, has no use for
    "context_length": "nano reads bags of words",
    "layer_decay": "nano has no groups of layers",
    "unlock_groups": "nano has no groups of layers",
    "patch_dropout": "nano's image tower has no patches",
}
OF_SAMPLING = {  # settings of some ways to sample
    "super_batch": ("concepts", "jest"),
    "concept_gain": ("concepts",),
    "reference_loss": ("jest",),
}
OF_SCALE = ("samples_seen", "batch_size", "learning_rate", "warmup_steps", "weight_decay")
LossSettings = dict[str, bool | int | float | str | tuple[float | str, ...]]


@dataclass(frozen=True, kw_only=True)
class ClipTraining(DatasetStage):
    """model.safetensors, model.json and a README.md of two towers, and the loss of every step.

    The number of samples seen is independent of the subset's size, as in DataComp, so that subsets
    can be compared; weights and batches depend on the seed, not on the stage's name. Several seeds
    are trained in parallel, each to files of its own (seed-3.model.json). A killed training resumes
    from its last checkpoint and ends at the same weights, bit for bit.

    If an image has several texts, a step takes one, by a hash of seed, batch and uid. A text of
    fewer than two words is replaced by the first, as in LaCLIP.

    Source: CLIP (Radford et al. 2021); DataComp (Gadre et al. 2023) but for nano and micro:
    a 0.7 M-weight residual image tower and a bag of hashed words and 4-grams (docs/training.md).
    Error: exact for one kind of processor and one version of torch; not on a GPU, nor compiled.
    Example: {after: [ingest.image_folder, export.parquet]}
    """

    # constants of the training: nano and micro for a processor, the others DataComp's
    scale: Literal["nano", "micro", "debug", "small", "medium", "large", "xlarge"] = "nano"
    # a network by open_clip's name, or a JSON file of its configuration; null: the scale's
    model: NonEmpty | None = later(None)
    # weights to begin with: stage:NAME, checkpoint:URI, open_clip:NAME@FILE; null: random ones
    start: NonEmpty | None = later(None)
    # tower whose weights stay as they are at the start
    lock: Literal["none", "image", "text"] = later("none")
    unlock_groups: ZeroUp = later(0)  # last groups of the locked tower's layers that learn
    # factor of the learning rate from each group of layers to the one before it
    layer_decay: Between0And1 | None = later(None)
    # tokens of a text; null: the network's. For more than the start's, its positions are
    # stretched, as in Long-CLIP
    context_length: OneUp | None = later(None)
    # share of a picture's patches that it loses in training, as in FLIP: faster
    patch_dropout: Between0And1 | None = later(None)
    patch_dropout_until: Share = later(1.0)  # share of the steps after which pictures are whole
    # decay a step of a running mean of the weights, a second model in out/average/
    average: Between0And1 | None = later(None)
    # in all, independent of the number of rows; null, here and in the next four: the scale's
    samples_seen: ZeroUp | None = None
    batch_size: OneUp | None = None  # pairs of a step, over all ranks
    learning_rate: Rate | None = None  # the peak, after the warm-up
    warmup_steps: ZeroUp | None = None  # steps in which the learning rate rises
    weight_decay: Decay | None = None  # of AdamW
    # of the towers' arithmetic; weights are float32; a processor without bf16 computes in float32
    precision: Literal["bf16", "float32"] = "bf16"
    # text of a step, if an image has several: one by hash, equally likely; or always the first
    texts: Literal["uniform", "first"] = later("uniform")
    # each shifted or cropped by itself; a loss is the mean over pairs of views, or compares them
    image_views: Literal[1, 2] = later(1)
    text_views: Literal[1, 2] = later(1)  # the second is another of its texts, if it has several
    # file of words and their synonyms, `word, another, a third` a line: texts are edited with
    # them, as in EDA; with two views of a text only the second
    synonyms: NonEmpty | None = later(None)
    # epochs: each row `repeats` times an epoch; shards: these drawn with replacement; or a batch is
    # chosen from several of an epoch, by rows whose concepts gain most, or (jest, as in JEST) whose
    # loss is high and a reference's is low; null: the scale's
    sampling: Literal["epochs", "shards", "concepts", "jest"] | None = later(None)
    # of `concepts`: rows with rare ones first, up to a share of the batch; or rows with many
    concept_gain: Literal["diversity", "frequency"] = later("diversity")
    super_batch: OneUp = later(5)  # of concepts and jest: batches from whose rows one is chosen
    # of `jest`: the export's column with each row's loss by a reference model, in nats
    reference_loss: NonEmpty | None = later(None)
    # the name of a file stages/losses/NAME.py, ours (docs/training.md lists them) or your own
    loss: NonEmpty = later("clip")
    loss_settings: LossSettings | None = later(None)  # by their names in the loss's file
    # rows of `data`, with repeats, weights and texts: DataComp's .npy, a text of one uid a line, or
    # a subset file (docs/training.md)
    subset: NonEmpty | None = later(None)
    # each trains a model, and is added to the recipe's seed; several show the noise
    seeds: tuple[int, ...] = (0,)
    # models of each seed, at equal parts of its samples: 4 leaves those at 25, 50 and 75 % too
    snapshots: Literal[1, 2, 4, 5, 10, 20] = later(1)
    # processes that share a training's batches, each with the stage's resources
    ranks: OneUp = later(1)
    # pieces in which a process embeds its rows, to save memory; the loss is the whole batch's
    accumulate: OneUp = later(1)
    compile: bool = later(False)  # torch.compile the towers: minutes at first, then faster
    checkpoint_activations: bool = location(False)  # less memory, a third more arithmetic
    tile: OneUp | None = location(None)  # columns of logits in a tile of the loss; null: all
    gpus: Gpus = location(0)  # of each process
    readers: OneUp = location(1)  # threads of each process that decode pictures, a core each
    memory_gb: Gigabytes = location(2.0)  # of each process
    checkpoint_steps: OneUp = location(50)  # steps between two checkpoints
    # write a file for TensorBoard beside log.jsonl; needs clipmill[tensorboard]
    tensorboard: bool = location(False)

    version = 2
    determinism = "exact"
    learns = "keep"
    takes = ("data", "start")
    gives = ("model",)
    artifacts = (("loss", f"*{CURVE}"),)

    def __post_init__(self) -> None:
        for name in OF_SCALE:  # filled in, so that the fingerprint has the numbers
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(SCALES[self.scale], name))
        # None: the loss is a mean over pairs of any views; (): it takes one view; else two of these
        compared = self.declared.views  # refuses an unknown loss or setting
        several = {kind for kind in ("image", "text") if getattr(self, f"{kind}_views") > 1}
        if compared is not None and not several <= {*compared}:
            found = f"the loss '{self.loss}' takes one view"
            raise RecipeError(found, "keys `image_views`, `text_views`", "leave them out")
        if compared and not several:
            keys = " or ".join(f"{kind}_views: 2" for kind in compared)
            found = f"the loss '{self.loss}' compares two views"
            raise RecipeError(found, "key `loss`", f"write {keys}, or name another loss")
        for key in self.declared.needs:
            if getattr(self, key) is None:
                do = f"write {key}: docs/training.md has its paper's, beside the loss"
                raise RecipeError(f"the loss '{self.loss}' needs {key}", f"key `{key}`", do)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            do = "name at least one, and none twice"
            raise RecipeError(f"seeds is {list(self.seeds)}", "key `seeds`", do)
        fixed = self.fixed
        if self.start is not None:
            check_start(self.start, fixed.model)
        if self.unlock_groups and self.lock == "none":
            do = "write lock: image or lock: text, or leave it out"
            raise RecipeError("no tower is locked", "key `unlock_groups`", do)
        self.check_sampling()
        for key, found in OF_NETWORKS.items():
            if getattr(self, key) and fixed.model == "nano":
                do = "leave it out, or name a network of open_clip's as `model`"
                raise RecipeError(found, f"key `{key}`", do)
        if self.patch_dropout:
            check_patches(fixed.model)
        is_start = self.start is not None and (fixed.samples_seen, self.snapshots) == (0, 1)
        if fixed.steps < self.snapshots and not is_start:
            found = f"samples_seen is {fixed.samples_seen}, and a batch has {fixed.batch_size}"
            do = "write more, or a smaller batch_size: there is no step for each model"
            raise RecipeError(found, "key `samples_seen`", do)
        scale = SCALES[self.scale]
        # DataComp's debug is a test run: its warm-up is longer than the training.
        is_debug = scale.warmup_steps >= scale.steps and fixed.warmup_steps == scale.warmup_steps
        if 0 < fixed.steps <= fixed.warmup_steps and not is_debug:
            found = f"warmup_steps is {fixed.warmup_steps}, the training has {fixed.steps} steps"
            found += f" ({fixed.samples_seen:,} samples in batches of {fixed.batch_size})"
            raise RecipeError(found, "key `warmup_steps`", "write fewer, or more samples_seen")
        if fixed.batch_size < self.ranks * self.accumulate:
            found = f"batch_size is {fixed.batch_size}, "
            found += f"for {self.ranks} ranks of {self.accumulate} pieces each"
            raise RecipeError(found, "keys `ranks`, `accumulate`", "write fewer, or a larger batch")

    def check_sampling(self) -> None:
        """Refuses settings of another `sampling`, and for jest a loss that is not SigLIP's."""
        for key, samplings in OF_SAMPLING.items():
            is_given = getattr(self, key) != type(self).__dataclass_fields__[key].default
            if is_given and self.sampling not in samplings:
                do = f"write sampling: {' or '.join(samplings)}, or leave it out"
                found = f"sampling is {self.sampling or self.fixed.sampling}"
                raise RecipeError(found, f"key `{key}`", do)
        if self.sampling == "jest":
            if not self.reference_loss:
                do = "name a column of the export: each row's loss by a better model"
                raise RecipeError("jest has no reference", "key `reference_loss`", do)
            if self.declared.bias is None or self.declared.texts == "all":
                found = f"jest draws by the sigmoid loss of pairs, and the loss is '{self.loss}'"
                raise RecipeError(found, "key `sampling`", "write loss: siglip")

    @property
    def chooses(self) -> bool:
        """Returns whether a batch is chosen from several."""
        return self.sampling in ("concepts", "jest")

    @property
    def least_rows(self) -> tuple[str, int]:
        factor = self.super_batch if self.chooses else 1
        return "batch_size", self.fixed.batch_size * factor

    @property
    def fixed(self) -> Scale:
        """The scale, with this stage's own settings."""
        own = {name: getattr(self, name) for name in OF_SCALE}
        scale = SCALES[self.scale]
        own["sampling"] = "epochs" if self.chooses else self.sampling or scale.sampling
        return replace(scale, model=self.model or scale.model, **own)

    @property
    def declared(self) -> Declared:
        """Declarations of the loss; raises RecipeError if it or one of its settings is unknown."""
        settings: Any = self.loss_settings or {}  # `declared_by` checks the types in lists
        return declared_by(self.loss, settings)

    @property
    def resources(self) -> Resources:
        return Resources(cpus=self.readers, gpus=self.gpus, memory_gb=self.memory_gb)

    @property
    def digests(self) -> Mapping[str, str]:
        """Digests of a user's own loss, a network's JSON file and a list of synonyms, if any."""
        digests = {"loss_file": own} if (own := digest_of(self.loss)) else {}
        network = self.fixed.model if self.fixed.model.endswith(".json") else ""
        for key, name in (("model_file", network), ("synonyms_file", self.synonyms or "")):
            if (file := Path(name).expanduser()).is_file():
                digests[key] = sha256(file.read_bytes()).hexdigest()
        return digests

    def outside(self) -> str:
        """Returns digests of the subset's bytes and of the start's weights; empty without."""
        from clipmill.stages.clip.subset import subset_digest

        subset = subset_digest(self.subset) if self.subset is not None else ""
        if self.start is None or self.start.startswith("stage:"):
            return subset
        return f"{subset} {start_of(self.start).sha256}"

    def look(self) -> None:
        from clipmill.stages.clip import start, subset
        from clipmill.stages.readers._edits import read_edits

        read_edits(self.synonyms)
        if self.subset and subset.look_at(self.subset) and self.declared.texts == "first":
            found = f"it replaces texts, of which '{self.loss}' reads the export's stored vectors"
            raise RecipeError(found, f"{subset.KEY}: {self.subset}", "leave its texts out")
        if self.start is not None:
            start.look_at(self.start)

    def probe(self) -> tuple[float, float]:
        """Measures seconds per sample of a step, and of embedding one picture, on this machine."""
        return probed(self)

    @property
    def steps(self) -> int:
        return self.fixed.steps

    def run(self, inputs: Inputs, ctx: Context) -> None:
        from clipmill.stages.clip.batch import Reading
        from clipmill.stages.clip.named import reads
        from clipmill.stages.clip.subset import chooser_of
        from clipmill.stages.readers._edits import read_edits

        stage = ctx.worker.stage
        dataset = summary_of(inputs.data, stage, formats=("parquet", "pixels"))
        samples = sum(file["rows"] for file in dataset["files"])
        self.refuse_few(samples, "the export has", stage)
        if dataset["format"] == "pixels":  # numbers rows as its export.parquet: count what it lacks
            samples += sum(dataset["counts"][reason] for reason in ("no_image", "undecodable"))
        model = reads(self.fixed.model, self.context_length)
        if dataset.get("image_size", model.image_size) != model.image_size:
            size, own = dataset["image_size"], model.image_size
            found = f"pictures of {size} pixels, and '{self.scale}' takes {own}"
            do = f"write image_size: {own} at the stage of export.pixels"
            raise StageError(found, f"stage '{stage}', key `data`", do)
        files = numbered(dataset["files"])
        listed = self.listed(inputs.data, [file["file"] for file in files], ctx)
        choose = chooser_of(inputs.data, inputs.mask, self.subset)
        declared, fixed = self.declared, self.fixed
        texts: Any = self.texts if declared.texts == "one" else declared.texts
        reading = Reading(
            data=inputs.data,
            folder=ctx.folder,
            size=model.image_size,
            tokenize=model.tokenize,
            augment=fixed.augment,
            sampling=fixed.sampling,
            texts=texts,
            teacher=declared.teacher,
            negatives=declared.negatives,
            choose=choose,
            gain=self.concept_gain if self.sampling == "concepts" else None,
            super_batch=self.super_batch,
            reference=self.reference_loss,
            image_views=self.image_views,
            text_views=self.text_views,
            edits=read_edits(self.synonyms),
        )
        reader = "readers.jest" if self.sampling == "jest" else "readers.cached"
        if self.streams(dataset["format"], stage):
            ctx.say("counting rows")
            reader = "readers.streamed"
        else:
            ctx.say("reading captions" if dataset["format"] == "pixels" else "decoding pictures")
        cached = ctx.map(partial(own_code.load(reader, "key `data`").prepare, reading), files)
        left_out: dict[str, int] = {}
        for reason, count in (pair for shard in cached for pair in shard["left_out"].items()):
            left_out[reason] = left_out.get(reason, 0) + count
        rows = sum(shard["rows"] for shard in cached)
        self.refuse_few(rows, self.after_leaving_out(left_out, listed), stage)
        facts = {"data": digest(dataset["files"]), "rows": rows, "left_out": left_out, **listed}
        if declared.negatives:
            facts["no_negative"] = sum(shard["no_negative"] for shard in cached)
            if facts["no_negative"] == rows:
                do = "export a column of caption.swap with a text in it"
                found = f"no row has a text in '{declared.negatives}'"
                raise StageError(found, f"stage '{stage}', key `loss_settings`", do)
        if self.sampling == "concepts":
            lists = sorted({name for shard in cached for name in shard["concept_lists"]})
            if len(lists) != 1:
                found = f"concepts of {len(lists)} lists: {', '.join(name[:12] for name in lists)}"
                do = "export rows that annotate.concepts has matched with one list"
                raise StageError(found, f"stage '{stage}', key `sampling`", do)
            facts["concept_list"] = lists[0]
        facts |= {"mask": digest([shard["chosen"] for shard in cached])} if choose else {}
        start = None if self.start is None else start_of(self.start, inputs.start)
        facts |= {} if start is None else {"start": start.sha256}
        ctx.say("training")
        read: dict[str, Any] = {"reader": reader, "reading": reading, "prepared": cached}
        work = Work(settings=self, facts=facts, start=start, samples=samples, **read)
        if self.ranks == 1:
            ctx.map(partial(train_alone, work), self.seeds)
        for seed in self.seeds if self.ranks > 1 else ():
            ctx.launch(partial(train_rank, work, seed), self.ranks)
        Storage(ctx.folder).delete_folder("cache")

    @property
    def pixels_size(self) -> int | None:
        """The image_size of a usable export.pixels; None if pictures are decoded in training."""
        from clipmill.stages.clip.named import reads

        is_prepared = (self.fixed.augment, self.fixed.sampling) == ("shift", "epochs")
        return reads(self.fixed.model).image_size if is_prepared else None

    def streams(self, layout: str, stage: str) -> bool:
        """Returns whether pictures are decoded during the training, not beforehand."""
        if layout == "pixels" and self.sampling == "shards":
            found = "pictures of export.pixels are seen in epochs, and `sampling` says shards"
            do = "leave it out, or name the export.parquet as `data`"
            raise StageError(found, f"stage '{stage}', key `sampling`", do)
        streams = layout == "parquet" and self.pixels_size is None
        if streams and self.chooses:
            found = "pictures are decoded batch by batch, too late to choose among several batches"
            do = "name an export.pixels as `data`"
            raise StageError(found, f"stage '{stage}', key `sampling`", do)
        return streams

    def listed(self, data: str, files: list[str], ctx: Context) -> dict[str, int]:
        """Counts the entries of `subset`, and those `not_there`; empty without a subset."""
        if self.subset is None:
            return {}
        from clipmill.stages.clip.subset import counted, subset_digest

        stage = ctx.worker.stage
        ctx.say("finding the subset's rows")
        count = partial(counted, self.subset, subset_digest(self.subset), data, files)
        (counts,) = ctx.map(count, [0])
        rows = counts.pop("rows")
        if counts["listed"] == counts["not_there"]:
            found = f"no row of the data is in the subset, which names {counts['listed']:,}"
            where = f"stage '{stage}', key `subset`: {redacted(self.subset)}"
            raise StageError(found, where, "name a subset of this data's pool")
        self.refuse_few(rows, f"of {counts['listed']:,} in the subset the data have", stage)
        return counts

    def after_leaving_out(self, left_out: Mapping[str, int], listed: Mapping[str, int]) -> str:
        """Returns the beginning of an error that says which rows are left to train on."""
        lost = [f"{n:,} {reason}" for reason, n in left_out.items() if n and reason != "not_kept"]
        after = [f"after leaving out {' and '.join(lost)}"] if lost else []
        if listed:
            return ", ".join([*after, f"of {listed['listed']:,} in the subset the data have"])
        return " ".join([*after, "there are"])

    def refuse_few(self, rows: int, which: str, stage: str) -> None:
        """Refuses fewer rows than a batch, in which a row would be its own negative."""
        _, least = self.least_rows
        if rows < least:
            has = "is chosen from" if least > self.fixed.batch_size else "has"
            found = f"{which} {rows:,} rows, and a batch {has} {least:,}"
            do = "select more rows, or lower `batch_size`"
            raise StageError(found, f"stage '{stage}', key `batch_size`", do)
