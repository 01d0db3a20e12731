"""Grade sets as data: one YAML file each, read by ``knee.grades.load_grade_set``."""
