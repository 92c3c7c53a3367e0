# The dashboard without torch: docs/dashboard.md, "Where it runs"
FROM python:3.12-slim
WORKDIR /sd35h5
COPY pyproject.toml README.md LICENSE capture_cli.py ./
COPY sd35h5 sd35h5
COPY dashboard dashboard
RUN pip install --no-cache-dir .
ENV STREAMLIT_SERVER_ADDRESS=0.0.0.0 STREAMLIT_SERVER_PORT=8501 HOME=/tmp
USER 1000
WORKDIR /tmp
ENTRYPOINT ["sd35h5-dashboard"]
CMD ["/runs"]
