# The real smg, from PyPI's wheel, on the Python that the simulated engines have. Started as its published image is:
# github.com/smg-project/smg docker/Dockerfile.
FROM blackwell-lab-base:trixie AS debian
COPY site/ /site/
COPY pick_libraries /pick_libraries
RUN sh /pick_libraries /picked /site/smg/smg_rs.abi3.so

FROM blackwell-lab-python:trixie
COPY --from=debian /picked/ /
COPY --from=debian /site/ /usr/local/lib/python3.12/dist-packages/
USER 65532
ENTRYPOINT ["python3", "-m", "smg.launch_router"]
