"""Codes and colours of labels: by name, by a bundle's metadata, and true to SNOMED CT."""

from __future__ import annotations

import csv

import pytest
from pydicom.sr._concepts_dict import concepts

from segpipe.dicom.codes import CATEGORIES, TABLE, codes_metadata, label_infos
from segpipe.errors import DataError

SIDED = [
    *(
        f"{name}_{side}"
        for side in ("left", "right")
        for name in (
            "kidney",
            "adrenal_gland",
            "iliac_artery",
            "iliac_vena",
            "humerus",
            "scapula",
            "clavicula",
            "femur",
            "hip",
            "gluteus_maximus",
            "gluteus_medius",
            "gluteus_minimus",
            "autochthon",
            "iliopsoas",
            "lung_upper_lobe",
            "lung_lower_lobe",
            "heart_atrium",
            "heart_ventricle",
        )
    ),
    *(f"rib_{side}_{number}" for side in ("left", "right") for number in range(1, 13)),
]
SINGLE = [
    "spleen",
    "gallbladder",
    "liver",
    "stomach",
    "aorta",
    "inferior_vena_cava",
    "portal_vein_and_splenic_vein",
    "pancreas",
    "lung_middle_lobe_right",
    "esophagus",
    "trachea",
    "heart_myocardium",
    "pulmonary_artery",
    "brain",
    "small_bowel",
    "duodenum",
    "colon",
    "sacrum",
    "face",
    "urinary_bladder",
    *(
        f"vertebrae_{name}"
        for name in [*(f"C{k}" for k in range(1, 8)), *(f"T{k}" for k in range(1, 13)), *(f"L{k}" for k in range(1, 6))]
    ),
]


def rows() -> list[dict[str, str]]:
    with TABLE.open(newline="") as stream:
        return list(csv.DictReader(stream))


def check_digit_fits(code: str) -> bool:
    """Verhoeff's scheme, by multiplying in the dihedral group of ten: the last digit of a SNOMED CT identifier."""

    def times(a: int, b: int) -> int:
        low = (a + b) % 5 if a < 5 else (a - b) % 5
        return low + 5 * ((a >= 5) != (b >= 5))

    step = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]
    total = 0
    for place, digit in enumerate(map(int, reversed(code))):
        for _ in range(place % 8):
            digit = step[digit]
        total = times(total, digit)
    return total == 0


def test_check_digits() -> None:
    assert check_digit_fits("10200004") and not check_digit_fits("10200005")
    assert [row["names"] for row in rows() if not check_digit_fits(row["code"])] == []


def test_meanings_are_those_of_the_standard_where_it_knows_the_code() -> None:
    meanings: dict[str, set[str]] = {}
    for entries in concepts["SCT"].values():
        for code, (meaning, _) in entries.items():
            meanings.setdefault(code, set()).add(meaning.lower())
    known = [row for row in rows() if row["code"] in meanings]
    assert len(known) > 0.85 * len(rows())
    assert [row for row in known if row["meaning"].lower() not in meanings[row["code"]]] == []


def test_each_name_stands_once_with_a_category() -> None:
    names = [name for row in rows() for name in row["names"].split()]
    assert len(set(names)) == len(names)
    assert {row["category"] for row in rows()} == set(CATEGORIES)


def test_a_whole_body_model_is_known() -> None:
    labels = dict(enumerate(["background", *SIDED, *SINGLE]))
    assert len(labels) == 105
    infos, notes = label_infos(labels)
    assert notes == []
    assert [info.value for info in infos] == list(range(1, 105))
    for info in infos:
        sides = [side for side in ("left", "right") if side in info.name and info.name in SIDED]
        meaning = info.side.meaning if info.side else info.type.meaning
        assert all(side in meaning.lower() for side in sides)
    assert len({info.colour_rgb for info in infos}) == 104
    assert len({(info.type, info.modifiers) for info in infos}) >= 104


@pytest.mark.parametrize(
    ("name", "kind", "modifiers", "region"),
    [
        ("Left Kidney", "Kidney", ["Left"], None),
        ("kidney-R", "Kidney", ["Right"], None),
        ("Kidneys", "Kidney", [], None),
        ("left atrium", "Left atrium", [], None),
        ("liver tumour", "Neoplasm", [], "Liver"),
        ("lung nodules", "Nodule", [], "Lung"),
        ("colon cancer primaries", "Neoplasm", [], "Colon"),
        ("kidney_tumor_left", "Neoplasm", ["Left"], "Kidney"),
        ("enhancing tumor", "Neoplasm", [], None),
        ("hippocampus_anterior", "Hippocampus", ["Anterior"], None),
        ("hippocampus_anterior_left", "Hippocampus", ["Anterior", "Left"], None),
        ("hippocampus_left_posterior", "Hippocampus", ["Left", "Posterior"], None),
        ("OpticNerve_L", "Optic nerve", ["Left"], None),
        ("SpinalCord", "Spinal cord", [], None),
        ("rib_l_3", "Third rib", ["Left"], None),
        ("lung_right_middle_lobe", "Middle lobe of right lung", ["Right"], None),
    ],
)
def test_names(name: str, kind: str, modifiers: list[str], region: str | None) -> None:
    ((info,), notes) = label_infos({1: name})
    assert (info.type.meaning, notes) == (kind, [])
    assert [term.meaning for term in info.modifiers] == modifiers
    assert (info.region and info.region.meaning) == region
    sides = [word for word in modifiers if word in ("Left", "Right")]
    assert (info.side and info.side.meaning) == (sides[0] if sides else None)


@pytest.mark.parametrize(
    ("name", "modifiers"),
    [
        ("femur_head_left", ["Left"]),
        ("Glnd_Submand_R", ["Right"]),
        ("l_gizmo", ["Left"]),
        ("vertebrae_L_1", []),  # lumbar
        ("left_right_gizmo", ["Left", "Right"]),
        ("lung_middle_lobe_left", ["Left"]),  # the table knows that of the right lung alone
        ("lung_middle_lobe_tumor_left", ["Left"]),
    ],
)
def test_an_unknown_name_keeps_its_side(name: str, modifiers: list[str]) -> None:
    ((info,), notes) = label_infos({1: name})
    assert (info.type.meaning, info.region, info.stated) == ("Tissue", None, False)
    assert [term.meaning for term in info.modifiers] == modifiers
    assert notes == [f"label 1 ({name}): no code is known for this name; coded as {', '.join(['Tissue', *modifiers])}"]
    assert (info.side is None) == (len(modifiers) != 1)


def test_a_ventricle_is_the_hearts_where_something_says_heart() -> None:
    sides = {1: "left_ventricle", 2: "right ventricle"}
    infos, notes = label_infos(sides, {"name": "brain_mri"})
    assert [(info.type.meaning, info.side and info.side.meaning) for info in infos] == [
        ("Tissue", "Left"),
        ("Tissue", "Right"),
    ]
    assert len(notes) == 2
    for labels, name in ((sides, "cardiac_mri"), ({**sides, 3: "myocardium"}, "acdc")):
        infos, notes = label_infos(labels, {"name": name})
        assert [info.type.meaning for info in infos[:2]] == ["Left ventricle", "Right ventricle"] and not notes


def test_a_mere_position_is_of_what_the_bundle_is_named_after() -> None:
    infos, notes = label_infos({0: "background", 1: "Anterior", 2: "Posterior"}, {"name": "hippocampus_mri"})
    assert [info.type.meaning for info in infos] == ["Hippocampus", "Hippocampus"]
    assert [term.meaning for info in infos for term in info.modifiers] == ["Anterior", "Posterior"]
    assert infos[0].colour_rgb != infos[1].colour_rgb
    assert notes == []
    assert label_infos({1: "Anterior"})[0][0].stated is False


def test_an_unknown_name_gets_a_generic_code_and_a_note() -> None:
    ((info,), notes) = label_infos({4: "gizmo"})
    assert (info.type.meaning, info.stated, info.is_anatomy) == ("Tissue", False, False)
    assert notes == ["label 4 (gizmo): no code is known for this name; coded as Tissue"]


def test_the_metadata_wins_and_can_be_written_from_the_table() -> None:
    labels = {1: "liver", 2: "gizmo", 3: "kidney_left", 4: "hippocampus_anterior_left"}
    own = {"type": {"value": "X-1", "scheme": "99OWN", "meaning": "Gizmo"}, "colour_rgb": [1, 2, 3]}
    infos, notes = label_infos(labels, {"codes": {"gizmo": own, "kidney_left": {"colour_rgb": [9, 9, 9]}}})
    assert notes == []
    assert (infos[1].type.value, infos[1].colour_rgb) == ("X-1", (1, 2, 3))
    assert infos[2].colour_rgb == (9, 9, 9) and infos[2].side is not None
    codes = codes_metadata(infos)
    assert label_infos(labels, {"codes": codes})[0] == infos
    assert codes["kidney_left"]["modifier"]["meaning"] == "Left"
    assert [term["meaning"] for term in codes["hippocampus_anterior_left"]["modifier"]] == ["Anterior", "Left"]


@pytest.mark.parametrize(
    "codes",
    [
        [],
        {"liver": "x"},
        {"liver": {"type": {"value": "1"}}},
        {"liver": {"type": {"value": "1" * 17, "scheme": "SCT", "meaning": "x"}}},
        {"liver": {"modifier": ["Left"]}},
        {"liver": {"colour_rgb": [1, 2]}},
        {"liver": {"colour_rgb": [1, 2, 256]}},
    ],
)
def test_codes_that_cannot_be_read_are_refused(codes: object) -> None:
    if codes == []:
        codes = ["liver"]
    with pytest.raises(DataError, match="codes of the bundle's metadata"):
        label_infos({1: "liver"}, {"codes": codes})
