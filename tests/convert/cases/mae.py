from tests.convert.samples import mae

CASES = {("reference", ""): mae()}
CASES |= {(name, ""): mae(norm_epsilon=1e-12) for name in ("transformers", "transformers_saved", "transformers_state")}
