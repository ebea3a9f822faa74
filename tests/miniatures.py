"""Miniatures of published data sets, true to their authors' files, oddities and all."""

import gzip
import io
import itertools
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy
import yaml
from PIL import Image


def picture(file: Path, shade: int = 90) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 9), (shade, 40, 40)).save(file)


def boxes(file: Path, order: int, gap: int = 128) -> None:
    """Three boxes of one colour each, in one of their six orders, with gaps between, as NLVR has them."""
    shades = list(itertools.permutations((10, 60, 200)))[order]
    whole = Image.new("RGB", (40, 10), (gap, gap, gap))
    for start, shade in zip((0, 15, 30), shades, strict=True):
        whole.paste((shade, shade, shade), (start, 0, start + 10, 10))
    file.parent.mkdir(parents=True, exist_ok=True)
    whole.save(file)


def write(file: Path, content) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def food101(root: Path, more: int = 0) -> None:
    lines = {
        "train": [
            "apple_pie_0.jpg,Apple Pie, the way mother made it, with cream,apple_pie",
            'apple_pie_1.jpg,"Pie, quoted",apple_pie',
            'sushi_0.jpg,12" sushi roll,sushi',
            "sushi_1.jpg,,sushi",
            "sushi_2.jpg,no picture of it,sushi",
            "sushi_3.jpg,Crème brûlée sushi,sushi",
        ],
        "test": ["apple_pie_9.jpg,A pie,apple_pie", "sushi_9.jpg,Sushi,sushi"],
    }
    for n in range(more):
        dish = ("apple_pie", "sushi")[n % 2]
        for split in lines:
            lines[split].append(f"{dish}_{100 + n}.jpg,the {dish},{dish}")
    for split, rows in lines.items():
        write(root / "texts" / f"{split}_titles.csv", "\r\n".join(rows) + "\r\n")
        for row in rows:
            name = row.partition(",")[0]
            if name != "sushi_2.jpg":
                picture(root / "images" / split / row.rpartition(",")[2] / name)


def mm_imdb(root: Path, more: int = 0) -> None:
    films = {
        "0000001": {"plot": ["A man.", "A longer plot."], "genres": ["Drama", "News"]},
        "0000002": {"plot": ["A dog."], "genres": ["Comedy", "Family"]},
        "0000003": {"plot": ["A show."], "genres": ["Talk-Show"]},
        "0000004": {"plot": [], "genres": ["Drama"]},
        "0000005": {"plot": ["A cat."], "genres": ["Comedy"]},
        "0000006": {"plot": ["A film."], "genres": ["Drama"]},
    }
    split = {
        "train": ["0000001", "0000002", "0000003", "0000004"],
        "dev": ["0000005"],
        "test": ["0000006", "0000009"],
    }
    for n in range(more):
        for place, part in enumerate(split):
            name = f"{place + 1}{n:06d}"
            films[name] = {"plot": ["is it left ?"], "genres": ["Drama", "Comedy"][: 1 + n % 2]}
            split[part].append(name)
    for name, film in films.items():
        write(root / "dataset" / f"{name}.json", {"title": "x", **film})
        picture(root / "dataset" / f"{name}.jpeg")
    write(root / "split.json", split)


def snli_ve(root: Path, more: int = 0) -> None:
    for split in ("train", "dev", "test"):
        rows = [
            {
                "Flickr30K_ID": "1234",
                "gold_label": label,
                "sentence1": "never used",
                "sentence2": f"{split} {label}",
                "pairID": f"1234.jpg#{n}",
            }
            for n, label in enumerate(("entailment", "neutral", "contradiction", "-") * (1 + more // 4))
        ]
        write(root / f"snli_ve_{split}.jsonl", "\n".join(map(json.dumps, rows)) + "\n")
    picture(root / "flickr30k-images" / "1234.jpg")


def film() -> bytes:
    """A second of a grey square and of a tone."""
    import av

    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as container:
        track = container.add_stream("mpeg4", rate=8)
        track.width, track.height, track.pix_fmt = 32, 32, "yuv420p"
        voice = container.add_stream("aac", rate=16000, layout="mono")
        for shade in range(8):
            pixels = numpy.full((32, 32, 3), 20 * shade, numpy.uint8)
            container.mux(track.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(track.encode())
        tone = numpy.sin(numpy.arange(16000, dtype=numpy.float32) / 9)[None]
        frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(voice.encode(frame))
        container.mux(voice.encode())
    return content.getvalue()


def mustard(root: Path, clip: bytes = b"a clip") -> None:
    clips = {
        f"1_{n}": {
            "utterance": "Oh, great.",
            "speaker": "SHELDON",
            "context": ["..."],
            "context_speakers": ["AMY"],
            "show": "FRIENDS" if n >= 14 else "BBT",
            "sarcasm": bool(n % 2),
        }
        for n in range(20)
    }
    write(root / "data" / "sarcasm_data.json", clips)
    places = [[*range(first, first + 4)] for first in range(0, 20, 4)]
    folds = [
        (numpy.array([n for n in range(20) if n not in test]), numpy.array(test)) for test in places
    ]  # as scikit-learn gives them
    (root / "data" / "split_indices.p").write_bytes(pickle.dumps(folds, protocol=2))
    for name in list(clips)[1:]:
        file = root / "utterances_final" / f"{name}.mp4"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(clip)


def refcoco(name: str) -> Callable[..., None]:
    def make(root: Path, more: int = 0) -> None:
        refs, annotations, images = [], [], []
        for n, split in enumerate((*("train", "train", "val", "testA", "testB"), *["train"] * more)):
            sentences = [
                {"sent": f"the {side} one", "raw": "x", "sent_id": n, "tokens": []}
                for side in ("left", "right")
            ]
            refs.append(
                {
                    "ref_id": n,
                    "ann_id": 100 + n,
                    "image_id": 7 + n,
                    "category_id": 1,
                    "split": split,
                    "sentences": sentences,
                    "sent_ids": [n],
                    "file_name": "unused.jpg",
                }
            )
            polygons = [[1.0, 1.0, 5.0, 1.0, 5.0, 5.0]]
            runs = {"counts": [10, 5, 93], "size": [9, 12]}
            # A split has both, as RefCOCO's has.
            annotations.append(
                {"id": 100 + n, "image_id": 7 + n, "segmentation": runs if n in (1, 3) else polygons}
            )
            file = f"COCO_train2014_{7 + n:012d}.jpg"
            images.append({"id": 7 + n, "file_name": file, "height": 9, "width": 12})
            picture(root / "train2014" / file)
        categories = [{"id": 1, "name": "person"}]
        write(
            root / name / "instances.json",
            {"annotations": annotations, "images": images, "categories": categories},
        )
        (root / name / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=0))

    return make


def vqav2(root: Path) -> None:
    for part, count in (("train2014", 24), ("val2014", 3)):
        places = [5 + n % 4 for n in range(count)]
        questions = [
            {"question_id": n, "image_id": place, "question": "what is it?"} for n, place in enumerate(places)
        ]
        answers = ["yes"] * 10 + ["no"] * 12 + ["a rare answer"] * 2 if count == 24 else ["yes", "no", "odd"]
        annotations = [
            {"question_id": n, "image_id": places[n], "multiple_choice_answer": answer, "answers": []}
            for n, answer in enumerate(answers)
        ]
        write(root / f"v2_OpenEnded_mscoco_{part}_questions.json", {"questions": questions})
        write(root / f"v2_mscoco_{part}_annotations.json", {"annotations": annotations})
        for place in set(places):
            picture(root / part / f"COCO_{part}_{place:012d}.jpg", 20 * place)


def nlvr(root: Path) -> None:
    for split, count in (("train", 40), ("dev", 3)):
        lines = []
        for n in range(count):
            label = "true" if n % 2 else "false"
            # A sentence was written for several pictures, which were presented together; that of others may
            # have the same words.
            identifier = f"{n // 2}-{n % 2}"
            sentence = f"There are {n // 4} boxes." if n % 4 < 2 else f"there are {n // 4} boxes"
            lines.append({"sentence": sentence, "label": label, "identifier": identifier, "directory": n % 3})
            for order in range(6):
                boxes(root / split / "images" / str(n % 3) / f"{split}-{identifier}-{order}.png", order)
        write(root / split / f"{split}.json", "\n".join(map(json.dumps, lines)))


def debian_apps(root: Path) -> None:
    def program(package: str, n: int, categories: list[str], **other) -> dict:
        icon = {"name": f"{package}_{package}{n}.png", "width": 64, "height": 64}
        small, large = {**icon, "width": 48, "height": 48}, {**icon, "name": "x.png", "scale": 2}
        return {
            "Type": "desktop-application",
            "ID": f"org.{package}.{n}",
            "Package": package,
            "Name": {"de": "Name", "C": f"{package} {n}"},
            "Summary": {"de": "Was es tut", "C": f"The {n}. of {package}'s programs"},
            "Categories": ["GTK", *categories],
            "Icon": {"cached": [small, large, icon], "stock": package},
            **other,
        }

    kinds = [["Game"], ["Audio", "AudioVideo", "Video"], ["Office"]]
    programs = [program(f"package{p}", n, kinds[p % 3]) for p in range(20) for n in range(2)]
    # One program in two packages.
    programs[2]["Summary"] = {"C": "Plays, and sings"}
    programs[28]["Summary"] = {"C": "plays and sings."}
    several, bare = (
        program("several", 0, ["Game", "Office"]),
        program("bare", 0, ["Game"], Icon={"stock": "x"}),
    )
    others = [
        {"File": "DEP-11", "Origin": "debian-trixie-main"},
        {"Type": "addon", "ID": "addon", "Package": "package0"},
        several,
        program("none", 0, []),
        bare,
        program("copy", 0, ["Game"]),
        program("gone", 0, ["Game"]),
        program("text", 0, ["Game"]),
        program("wordless", 0, ["Game"], Summary={"de": "Wortlos"}),
        None,
    ]
    root.mkdir(parents=True, exist_ok=True)
    with gzip.open(root / "Components-amd64.yml.gz", "wt", encoding="utf-8") as stream:
        yaml.safe_dump_all([*others[:3], *programs, *others[3:]], stream, explicit_start=True)
    with tarfile.open(root / "icons-64x64.tar.gz", "w:gz") as archive:
        for shade, one in enumerate([*programs, several, others[5], others[8]]):
            name = f"{one['Package']}_{one['Package']}{one['ID'][-1]}.png"
            # The copy's picture is that of the first program.
            picture(root / name, 3 * (0 if one["Package"] == "copy" else shade))
            archive.add(root / name, f"./{name}")
            (root / name).unlink()
        (root / "text_text0.png").write_text("no picture")
        archive.add(root / "text_text0.png", "./text_text0.png")
        (root / "text_text0.png").unlink()


MINIATURES = {
    "food101": food101,
    "mm-imdb": mm_imdb,
    "snli-ve": snli_ve,
    "mustard": mustard,
    "refcoco": refcoco("refcoco"),
    "refcoco+": refcoco("refcoco+"),
    "vqav2": vqav2,
    "nlvr": nlvr,
    "debian-apps": debian_apps,
}
