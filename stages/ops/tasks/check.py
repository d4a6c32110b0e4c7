"""Checks a folder of evaluation tasks, every picture decoded, and tells which tasks it lacks."""

from collections import Counter
from collections.abc import Callable, Sequence

from clipmill.metadata.storage import Storage
from clipmill.pipeline.stage import Environment, Worker
from clipmill.pipeline.stage import Finding as Proved
from clipmill.stages.ops.tasks._samples import CLASSNAMES, Finding, samples
from clipmill.stages.ops.tasks.folders import describe, names, none_at
from clipmill.stages.ops.tasks.listed import missing


def check(uri: str) -> list[Finding]:
    """Returns all that is wrong with a folder of tasks; every picture is decoded."""
    folder = Storage(uri)
    findings = []
    if not names(folder):
        findings = [Finding(none_at(folder), str(folder), "one subfolder is one task")]
    for name in names(folder):
        task, of_task = describe(folder, name)
        findings += of_task
        labels: Counter[int] = Counter()
        instances: set[int | None] = set()
        bare = pictures = 0
        for sample in samples(folder, task):
            if isinstance(sample, Finding):
                findings.append(sample)
            else:
                labels.update(sample.labels if task.kind == "multilabel" else [sample.label])
                pictures += 1
                instances.add(sample.group)
                bare += not sample.captions
        if task.shards and not pictures:
            findings.append(Finding("no sample", name, "put pictures into the shards of test/"))
        elif task.is_retrieval and bare:
            text = f"{bare} of {pictures} pictures have no caption: none can be found for them"
            findings.append(Finding(text, name, "write one a line into KEY.txt", bare == pictures))
        count = len(instances) if task.kind == "association" else pictures
        if task.listed and task.listed.size != count:
            text = f"{count:,} samples, and DataComp's {task.listed.name} has {task.listed.size:,}"
            findings.append(Finding(text, name, "bring all: it is in no average as it is", False))
        unseen = [c for i, c in enumerate(task.classnames) if i not in labels]
        if task.kind in ("classification", "multilabel") and unseen and labels:
            text = f"{len(unseen)} of {len(task.classnames)} classes have no picture: {unseen[0]!r}"
            findings.append(Finding(text, f"{name}/{CLASSNAMES}", "check the names' order", False))
    return findings


def proof(
    folder: str, worker: Worker, lacking: Callable[[Sequence[Environment]], list[str]]
) -> list[Proved]:
    """Returns everything wrong with a folder of tasks, and which of DataComp's it lacks."""
    findings = [
        Proved(wrong.where, "bad" if wrong.is_fatal else "note", wrong.found, wrong.do)
        for wrong in check(folder)
    ]
    if not findings:
        found = f"every task in {folder} can be scored"
        findings = [Proved("tasks", "good", found)]
    storage = Storage(folder)
    known = [describe(storage, name)[0].listed for name in names(storage)]
    missed = missing(task.name for task in known if task)
    if not missed:
        found = "all 38 tasks of its average are here"
        return [*findings, Proved("datacomp", "good", found)]
    found = f"{len(missed)} of the 38 tasks of its average are not here"
    do = "an average of all 38 needs each; without them averages are named partial"
    findings.append(Proved("datacomp", "note", found, do))
    return findings + [Proved(task.name, "note", "not here", task.bring) for task in missed]
