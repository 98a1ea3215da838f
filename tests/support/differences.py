"""Small problems, for finite differences."""

TINY = {"steps": 3, "batch": 2, "input_size": 2, "hidden": 3}
FORMS = {
    "padded": {},
    "lengths": {"lengths": True},
    "packed": {"packed": True},
    "reset": {"reset": True},
    "lengths and reset": {"lengths": True, "reset": True},
}
