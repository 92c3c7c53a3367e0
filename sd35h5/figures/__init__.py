"""Tables to Altair charts, arrays to pictures. No Streamlit."""
