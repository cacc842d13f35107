def build(a,b): a.mkdir(parents=True,exist_ok=True)
def role_variables(a): return {}
